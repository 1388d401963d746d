BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Get-GuestMemory' {
    BeforeEach {
        $high = New-MmapRegion 64KiB 0x100000000 -Name high -DirtyTracking
        $low = New-MmapRegion 64KiB 0x1000 -Name low -DirtyTracking
        $next = New-MmapRegion 64KiB 0x11000 -Name next -DirtyTracking
    }

    AfterEach {
        Clear-TestState
    }

    It 'gathers regions, whatever order they come in' {
        $memory = $high, $low, $next | Get-GuestMemory
        $memory | Should -BeOfType GuestMemory.Core.GuestMemoryMmap
        @($memory).Count | Should -Be 1
        $memory.Regions.Name | Should -Be low, next, high
        $memory.Size | Should -Be 192KB
        $memory.LastAddress | Should -Be 0x10000FFFF
    }

    It 'takes regions as an argument' {
        (Get-GuestMemory -Memory $low, $high).Regions.Count | Should -Be 2
    }

    It 'gives memory that is read and written across regions' {
        $memory = Get-MmapRegion | Get-GuestMemory
        $memory | Write-GuestMemory 0x10FFE -Bytes 1, 2, 3, 4
        ($memory | Read-GuestMemory 0x10FFE 4).Bytes | Should -Be 1, 2, 3, 4
        ($memory | Get-DirtyBitmap -AsRange | ForEach-Object Address) | Should -Be 0x10000, 0x11000
        ($memory | Read-GuestMemory -Address 0x1000 -Size 128KiB -Raw).Length | Should -Be 128KB
    }

    It 'emits every address space by itself' {
        $first = $low, $next | Get-GuestMemory
        $second = $high | Get-GuestMemory
        $both = $first, $second | Get-GuestMemory
        $both.Count | Should -Be 2
        $both[1].Regions.Name | Should -Be high
    }

    It 'shows regions, first and last address and size' {
        $text = Get-MmapRegion | Get-GuestMemory | Out-String
        $text | Should -Match 'Regions\s+FirstAddress\s+LastAddress\s+Size'
        $text | Should -Match '3\s+0x00001000\s+0x10000ffff\s+192 KiB'
    }

    It 'is removed as a whole' {
        Get-MmapRegion | Get-GuestMemory | Remove-MmapRegion
        Get-MmapRegion | Should -BeNullOrEmpty
    }

    It 'refuses regions that overlap, and leaves them as they are' {
        $other = New-MmapRegion 4KiB 0x2000 -Name other
        $low, $other | Get-GuestMemory -ErrorAction SilentlyContinue -ErrorVariable failure | Should -BeNullOrEmpty
        $failure.FullyQualifiedErrorId | Should -BeLike 'MemoryRegionOverlap,*'
        $failure.CategoryInfo.Category | Should -Be InvalidArgument
        (Get-MmapRegion).Count | Should -Be 4
    }

    It 'refuses a region that was removed' {
        $low | Remove-MmapRegion
        { $low | Get-GuestMemory -ErrorAction Stop } | Should -Throw -ErrorId 'RegionDisposed,*'
    }

    It 'says so where no region came' {
        { Get-MmapRegion nothing* | Get-GuestMemory -ErrorAction Stop } | Should -Throw -ErrorId 'NoMemoryRegion,*'
    }
}

Describe 'Get-GuestMemory -ProcessId' {
    # What a real QEMU has is in tests/Integration/Attach.Tests.ps1; here a program of the library's tests plays the mappings of a VMM.
    BeforeAll {
        $lacking = if (-not (Get-Command cc -CommandType Application -ErrorAction Ignore)) { "needs a C compiler ('apt-get install gcc libc6-dev')" }
        if ($lacking) { return }
        $folder = [IO.Directory]::CreateTempSubdirectory('gm-').FullName
        foreach ($name in 'firecracker', 'another') {
            cc -O2 -pthread -o "$folder/$name" "$PSScriptRoot/../GuestMemory.Core.Tests/Processes/vmm.c"
        }

        function Open-Vmm([string] $Name, [string[]] $Part) {
            $start = [Diagnostics.ProcessStartInfo]::new("$folder/$Name", $Part)
            $start.RedirectStandardInput = $start.RedirectStandardOutput = $true
            $process = [Diagnostics.Process]::Start($start)
            $parts = while (($line = $process.StandardOutput.ReadLine()) -and $line -ne 'ready') { $line }
            $process | Add-Member -PassThru -NotePropertyName Parts -NotePropertyValue @(@($parts).ForEach{ [ulong] ($_ -split ' ')[0] })
        }
    }

    BeforeEach {
        if ($lacking) { Set-ItResult -Skipped -Because $lacking }
        $vmm = Open-Vmm firecracker 'memfd:another_ram:64'
        $start = [Runtime.InteropServices.RuntimeInformation]::OSArchitecture -eq 'X64' ? 0 : 2GB
    }

    AfterEach {
        Clear-TestState
        ${vmm}?.Kill()
        ${vmm}?.Dispose()
    }

    AfterAll {
        if (-not $lacking) { Remove-Item -Recurse -Force $folder }
    }

    It 'takes a number, a process, and several' {
        $memory = Get-GuestMemory $vmm.Id
        $memory | Should -BeOfType GuestMemory.Core.GuestMemoryMmap
        $memory.ProcessId | Should -Be $vmm.Id
        $memory.PSObject.Properties.Name | Should -Not -Contain Path
        $memory | Read-GuestMemory $start -As UInt64 | Should -Be 1
        (Get-Process -Id $vmm.Id | Get-GuestMemory).ProcessId | Should -Be $vmm.Id
        $memory | Get-GuestMemory | Should -Be $memory
        (Get-GuestMemory -ProcessId $vmm.Id, $PID -ErrorAction SilentlyContinue -ErrorVariable failure).ProcessId | Should -Be $vmm.Id
        $failure.FullyQualifiedErrorId | Should -BeLike 'NoGuestMemory,*'
    }

    It 'refuses a process that is no VMM, and says what to do' {
        { Get-Process -Id $PID | Get-GuestMemory -ErrorAction Stop } | Should -Throw -ErrorId 'NoGuestMemory,*'
        Get-Process -Id $PID | Get-GuestMemory -ErrorAction SilentlyContinue -ErrorVariable failure
        $failure.ErrorDetails.RecommendedAction | Should -BeLike '*-Layout*'
        $failure.CategoryInfo.Category | Should -Be ObjectNotFound
        { Get-GuestMemory -ProcessId 0x7fffffff -ErrorAction Stop } | Should -Throw -ErrorId 'ProcessNotFound,*'
        { Get-Process -Id $PID | Read-GuestMemory 0 1 -ErrorAction Stop } | Should -Throw "*'Get-GuestMemory -ProcessId $PID'*" -ErrorId 'ValueNotSupported,*'
    }

    It 'is written with -Writable alone' {
        { Get-GuestMemory $vmm.Id | Write-GuestMemory ($start + 1MB) 5 -ErrorAction Stop } | Should -Throw -ErrorId 'PageNotAccessible,*'
        $memory = Get-GuestMemory $vmm.Id -Writable
        $memory | Write-GuestMemory ($start + 1MB) 0x1122334455667788 -As UInt64
        $memory | Read-GuestMemory ($start + 1MB) -As UInt64 | Should -Be 0x1122334455667788
    }

    It 'holds the process while a cmdlet works, with -Pause' {
        $memory = Get-GuestMemory $vmm.Id -Pause -WarningVariable warning
        $warning | Should -BeNullOrEmpty
        # A thread counts in the second page: two reads of one cmdlet that compares memory with itself see the same.
        ($memory | Compare-GuestMemory -With $memory -Summary).DifferentBytes | Should -Be 0
        $before = $memory | Read-GuestMemory ($start + [Environment]::SystemPageSize) -As UInt64
        Wait-Until { ($memory | Read-GuestMemory ($start + [Environment]::SystemPageSize) -As UInt64) -gt $before }
        Get-Content "/proc/$($vmm.Id)/status" | Should -Contain "TracerPid:`t0"
    }

    It 'is told by -Layout where the memory of another program lies' {
        $other = Open-Vmm another 'anon:64', 'anon:32'
        try {
            $memory = Get-GuestMemory $other.Id -Layout '4GiB+64MiB', '0+32MiB'
            $memory.Regions.GuestAddress | Should -Be 0, 4GB
            $memory.Regions.ProcessAddress | Should -Be $other.Parts[1], $other.Parts[0]
            $memory = Get-GuestMemory $other.Id -Layout ('0x1000+4KiB@0x{0:x}' -f $other.Parts[1])
            $memory | Read-GuestMemory 0x1000 -As UInt64 | Should -Be 2
            { Get-GuestMemory $other.Id -Layout '0+1GiB' -ErrorAction Stop } | Should -Throw -ErrorId 'LayoutUnknown,*'
            { Get-GuestMemory $other.Id -Layout '0+4KiB@0x1000' -ErrorAction Stop } | Should -Throw -ErrorId 'RangeNotMapped,*'
            { Get-GuestMemory $other.Id -Layout 'everything' -ErrorAction Stop } | Should -Throw -ErrorId 'ParameterArgumentTransformationError,*'
            { Get-GuestMemory $other.Id -Layout '0+32MiB' -Monitor x.sock -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*'
        }
        finally {
            $other.Kill()
            $other.Dispose()
        }
    }

    It 'lists its regions once, and removes them' {
        $first = Get-GuestMemory $vmm.Id
        $second = Get-GuestMemory $vmm.Id
        Get-MmapRegion | Should -Be $second.Regions
        $first | Read-GuestMemory $start -As UInt64 | Should -Be 1
        $second | Remove-MmapRegion
        Get-MmapRegion | Should -BeNullOrEmpty
        { $second | Read-GuestMemory $start 1 -ErrorAction Stop } | Should -Throw -ErrorId 'RegionDisposed,*'
        $name = "firecracker$($vmm.Id)-0"
        $mine = New-MmapRegion 4KiB 0x100000000 -Name $name
        (Get-GuestMemory $vmm.Id).Regions.Name | Should -Be "$name-2"
        (Get-MmapRegion).Name | Should -Be "$name-2", $name
        $mine | Remove-MmapRegion
    }

    It 'ends with the process' {
        $memory = Get-GuestMemory $vmm.Id
        $vmm.Kill()
        $vmm.WaitForExit()
        { $memory | Read-GuestMemory $start 1 -ErrorAction Stop } | Should -Throw -ErrorId 'ProcessEnded,*'
        Get-MmapRegion | Should -BeNullOrEmpty
    }

    It 'offers the processes of VMMs' {
        Get-Completion 'Get-GuestMemory -ProcessId ' | Should -Contain "$($vmm.Id)"
        Get-Completion 'Get-GuestMemory -ProcessId ' | Should -Not -Contain "$PID"
    }
}
