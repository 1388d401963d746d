BeforeAll {
    $manifest = (Resolve-Path "$PSScriptRoot/../../GuestMemory.psd1").Path
    Import-Module $manifest
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $userfaultfd = Test-GuestMemorySupport Userfaultfd
}

Describe 'Connect-UffdHandler' {
    BeforeEach {
        $path = "$TestDrive/vm.sock"
        $image = "$TestDrive/vm.mem"
        $content = Write-RandomFile $image 256KB
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    Context 'With a handler' {
        BeforeEach {
            Skip-UnlessSupported $userfaultfd
            # Nothing comes that was not touched, so that faults can be counted.
            $handler = Start-UffdHandler $path $image -Strategy OnDemand
        }

        It 'has the pages of a region come from the image' {
            $region = New-MmapRegion 256KiB 0x100000000
            Connect-UffdHandler -SocketPath $path -Memory $region | Should -BeNullOrEmpty
            $read = $region | Read-GuestMemory 0x100000000 256KiB -Raw
            [Convert]::ToHexString($read) | Should -BeExactly ([Convert]::ToHexString($content))
            Wait-Until { $handler.FaultCount -eq 64 }
        }

        It 'gathers the regions of the pipeline into one VM' {
            $regions = (New-MmapRegion 128KiB 0x100000000), (New-MmapRegion 128KiB)
            $regions | Connect-UffdHandler $path
            Wait-Until { $handler.ConnectionCount -eq 1 }
            # The image holds the regions in the order of guest addresses.
            ($regions[1] | Read-GuestMemory 0x1F000 16).Bytes | Should -Be $content[0x1F000..0x1F00F]
            ($regions[0] | Read-GuestMemory 0x100001000 16).Bytes | Should -Be $content[0x21000..0x2100F]
        }

        It 'takes every address space as a VM of its own' {
            $memories = 0, 0x100000000 | ForEach-Object { New-MmapRegion 64KiB $_ | Write-GuestMemory ($_ + 0xF000) 1 -PassThru }
            $memories | Connect-UffdHandler $path
            Wait-Until { $handler.ConnectionCount -eq 2 }
            ($memories[1] | Read-GuestMemory 0x100000000 16).Bytes | Should -Be $content[0..15]
        }

        It 'serves memory of a memfd' {
            $region = New-MmapRegion 64KiB -Memfd
            $region | Connect-UffdHandler $path
            ($region | Read-GuestMemory 0x8000 16).Bytes | Should -Be $content[0x8000..0x800F]
        }

        It 'shares the memory with -ShareMemory' {
            $region = New-MmapRegion 64KiB -Memfd
            $region | Connect-UffdHandler $path -ShareMemory
            ($region | Read-GuestMemory 0x8000 16).Bytes | Should -Be $content[0x8000..0x800F]
            $handler.Error | Should -BeNullOrEmpty
        }

        It 'refuses to share anonymous memory' {
            $region = New-MmapRegion 64KiB
            { $region | Connect-UffdHandler $path -ShareMemory -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*'
        }

        It 'connects 256 regions' {
            $regions = foreach ($i in 0..255) {
                New-MmapRegion 4KiB ([ulong] (0x200000000 + 0x2000 * $i))
            }
            [IO.File]::WriteAllBytes("$TestDrive/big.mem", $content + $content + $content + $content)
            $big = Start-UffdHandler "$TestDrive/big.sock" "$TestDrive/big.mem"
            $regions | Connect-UffdHandler $big.SocketPath
            ($regions[200] | Read-GuestMemory $regions[200].GuestAddress 16).Bytes | Should -Be $content[(8 * 4096)..(8 * 4096 + 15)]
            $big.Error | Should -BeNullOrEmpty
        }

        It 'keeps pages that were written before' {
            $region = New-MmapRegion 64KiB
            $region | Write-GuestMemory 0x1000 'mine'
            $region | Connect-UffdHandler $path
            $region | Read-GuestMemory 0x1000 4 -Encoding ascii | Should -Be mine
            ($region | Read-GuestMemory 0x2000 16).Bytes | Should -Be $content[0x2000..0x200F]
        }

        It 'lets the VM write, and leaves the image alone' {
            $region = New-MmapRegion 64KiB -DirtyTracking
            $region | Connect-UffdHandler $path
            $region | Write-GuestMemory 0x1004 'mine'
            $region | Read-GuestMemory 0x1004 4 -Encoding ascii | Should -Be mine
            ($region | Read-GuestMemory 0x1000 4).Bytes | Should -Be $content[0x1000..0x1003]
            ($region | Get-DirtyBitmap).DirtyCount | Should -Be 1
            [IO.File]::ReadAllBytes($image)[0x1000..0x100F] | Should -Be $content[0x1000..0x100F]
        }

        It 'finds the handler from any folder, and by its object' {
            $regions = (New-MmapRegion 64KiB), (New-MmapRegion 64KiB 0x100000)
            Push-Location $TestDrive
            try {
                $regions[0] | Connect-UffdHandler vm.sock
            }
            finally {
                Pop-Location
            }
            $handler | Connect-UffdHandler -Memory $regions[1]
            Wait-Until { $handler.TotalConnectionCount -eq 2 }
        }

        It 'gives the regions with -PassThru' {
            $regions = (New-MmapRegion 64KiB 0x100000), (New-MmapRegion 64KiB)
            $connected = $regions | Connect-UffdHandler $path -PassThru
            $connected | Should -Be $regions[1], $regions[0]
        }

        It 'serves 2 MiB huge pages' {
            Invoke-WithHugePage 1 {
                $whole = Write-RandomFile "$TestDrive/huge.mem" 2MB
                $huge = Start-UffdHandler "$TestDrive/huge.sock" "$TestDrive/huge.mem" -Strategy OnDemand
                $region = New-MmapRegion 2MiB -HugePageSize 2MiB
                $region | Connect-UffdHandler $huge.SocketPath
                $read = $region | Read-GuestMemory 0 2MiB -Raw
                [Convert]::ToHexString($read) | Should -BeExactly ([Convert]::ToHexString($whole))
                Wait-Until { $huge.FaultCount -eq 1 -and $huge.ByteCount -eq 2MB }
                $region | Remove-MmapRegion -Force
            }
        }

        It 'has a page that the image lost be an error, and pwsh lives' {
            $region = New-MmapRegion 256KiB -Name ram
            $region | Connect-UffdHandler $path
            Resize-File $image 4096
            $failure = { $region | Read-GuestMemory 0x20000 16 -ErrorAction Stop } | Should -Throw -ErrorId 'PageNotAccessible,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be ReadError
            Wait-Until { $handler.Error }
            $handler.Error | Should -Match 'cannot be read at offset 0x20000; was it truncated'
            $handler.State | Should -Be Serving
        }

        It 'connects a region once' {
            $region = New-MmapRegion 64KiB
            $region | Connect-UffdHandler $path
            Wait-Until { $handler.ConnectionCount -eq 1 }
            $failure = { $region | Connect-UffdHandler $path -ErrorAction Stop } | Should -Throw -ErrorId 'RegionInUse,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be ResourceBusy
            ($region | Read-GuestMemory 0 16).Bytes | Should -Be $content[0..15]
            $handler.ConnectionCount | Should -Be 1
        }

        It 'connects nothing with -WhatIf' {
            $region = New-MmapRegion 64KiB
            $region | Connect-UffdHandler $path -WhatIf
            $region | Read-GuestMemory 0 -As UInt64 | Should -Be 0
            $handler.TotalConnectionCount | Should -Be 0
            { $region | Remove-MmapRegion -ErrorAction Stop } | Should -Not -Throw
        }

        It 'leaves no descriptor and no thread' {
            $cycle = {
                $regions = (New-MmapRegion 64KiB), (New-MmapRegion 64KiB 0x100000)
                $regions | Connect-UffdHandler $path
                $null = $regions[1] | Read-GuestMemory 0x100000 64KiB
                $regions | Remove-MmapRegion -Force
                Wait-Until { $handler.ConnectionCount -eq 0 }
            }
            & $cycle
            $before = Get-DescriptorCount
            1..10 | ForEach-Object { & $cycle }
            Wait-Until { (Get-DescriptorCount) -le $before }
        }

        It 'touches pages as a VM would, and tells what that took' {
            $region = New-MmapRegion 256KiB
            $result = $region | Connect-UffdHandler $path -Touch Random -ThreadCount 2
            $result | Should -BeOfType GuestMemory.Core.Userfault.UffdTouchResult
            $result | Out-String -Width 200 | Should -Match '(?m)^ *Touches +Faults +Errors +First +P50 .*\n.*\n *64 +\d+ +0 .*\d+\.\d [um]s'
            $result.TouchCount | Should -Be 64
            $result.ErrorCount | Should -Be 0
            $result.LatencyP50 | Should -BeLessOrEqual $result.LatencyMax
            Wait-Until { $handler.FaultCount -eq 64 }
            $few = New-MmapRegion 256KiB 0x100000 | Connect-UffdHandler $path -Touch Strided -Stride 8 -TouchCount 10
            $few.TouchCount | Should -Be 10
        }

        It 'gives pages back like a balloon' {
            $region = New-MmapRegion 256KiB
            $region | Connect-UffdHandler $path -RemoveRange '0x1000+8KiB', '0x8000+4096'
            ($region | Read-GuestMemory 0x1000 16).Bytes | Should -Be (,0 * 16)
            ($region | Read-GuestMemory 0x8000 16).Bytes | Should -Be (,0 * 16)
            ($region | Read-GuestMemory 0x3000 16).Bytes | Should -Be $content[0x3000..0x300F]
            (Get-UffdHandler -Figures).RemovedPageCount | Should -Be 3
            $other = New-MmapRegion 256KiB 0x100000
            { $other | Connect-UffdHandler $path -RemoveRange '0x200000+4096' -ErrorAction Stop } | Should -Throw -ErrorId 'InvalidGuestAddress,*'
            { $other | Connect-UffdHandler $path -RemoveRange 'all of it' -ErrorAction Stop } | Should -Throw '*is not a range*'
            $other | Read-GuestMemory 0x100000 -As UInt64 | Should -Be 0
        }

        It 'completes the paths of handlers' {
            Get-Completion 'Connect-UffdHandler -SocketPath ' | Should -Be $path
        }
    }

    Context 'Bad input' {
        BeforeEach {
            Skip-UnlessSupported $userfaultfd
            $region = New-MmapRegion 64KiB -Name ram
        }

        It 'refuses <What> with <Id>, and leaves the region as it was' -ForEach @(
            @{ What = 'a path where nothing is'; Id = 'SocketNotFound'; Category = 'ObjectNotFound'; Socket = 'none.sock' }
            @{ What = 'a folder that is not there'; Id = 'SocketNotFound'; Category = 'ObjectNotFound'; Socket = 'none/vm.sock' }
            @{ What = 'a path below a file'; Id = 'SocketNotFound'; Category = 'ObjectNotFound'; Socket = 'vm.mem/vm.sock' }
            @{ What = 'a file'; Id = 'NotASocket'; Category = 'InvalidOperation'; Socket = 'vm.mem' }
            @{ What = 'a folder'; Id = 'NotASocket'; Category = 'InvalidOperation'; Socket = '.' }
            @{ What = 'a path of 108 bytes'; Id = 'SocketPathTooLong'; Category = 'InvalidArgument'; Socket = 'long' }
            @{ What = 'a path of 108 bytes in fewer characters'; Id = 'SocketPathTooLong'; Category = 'InvalidArgument'; Socket = 'longer in bytes' }
            @{ What = 'a socket where nobody listens'; Id = 'ConnectionRefused'; Category = 'ConnectionError'; Socket = 'deaf.sock' }
            @{ What = 'a path of another provider'; Id = 'NotAFilePath'; Category = 'InvalidArgument'; Socket = 'Env:/vm.sock' }
        ) {
            $deaf = Open-Socket "$TestDrive/deaf.sock"
            $Socket = switch ($Socket) {
                'long' { $path.PadRight(108, 'x') }
                'longer in bytes' { $path.PadRight(107, 'x').Remove(106) + "`u{fc}" }
                default { $_ }
            }
            Push-Location $TestDrive
            try {
                $null = { $region | Connect-UffdHandler $Socket -ErrorAction Stop } | Should -Throw -PassThru
                $descriptors = Get-DescriptorCount
                $failure = { $region | Connect-UffdHandler $Socket -ErrorAction Stop } | Should -Throw -ErrorId "$Id,*" -PassThru
                Get-DescriptorCount | Should -BeLessOrEqual $descriptors
            }
            finally {
                Pop-Location
                $deaf.Dispose()
            }
            $failure.CategoryInfo.Category | Should -Be $Category
            # No fault can hang: the memory is nobody's but its own.
            $region | Read-GuestMemory 0x8000 -As UInt64 | Should -Be 0
            { $region | Remove-MmapRegion -ErrorAction Stop } | Should -Not -Throw
        }

        It 'refuses a region that is not whole pages' {
            $null = Start-UffdHandler $path $image
            $odd = New-MmapRegion 5000 0x100000 -Name odd
            $failure = { $region, $odd | Connect-UffdHandler $path -ErrorAction Stop } | Should -Throw -ErrorId 'UnalignedSize,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be InvalidArgument
            $region | Read-GuestMemory 0 -As UInt64 | Should -Be 0
        }

        It 'refuses a region that userfaultfd cannot watch, and frees the others' {
            if ((stat --file-system --format %T $TestDrive) -eq 'tmpfs') {
                Set-ItResult -Skipped -Because 'the temporary folder is on tmpfs, whose files userfaultfd can watch'
            }
            $handler = Start-UffdHandler $path $image
            $disk = New-MmapRegion 64KiB 0x100000 -BackingPath $image -Name disk
            $failure = { $region, $disk | Connect-UffdHandler $path -ErrorAction Stop } | Should -Throw -ErrorId 'Uffd*,*' -PassThru
            $failure.Exception.Message | Should -Match 'disk'
            $failure.CategoryInfo.Category | Should -Be NotImplemented
            $region | Read-GuestMemory 0 -As UInt64 | Should -Be 0
            { $region, $disk | Remove-MmapRegion -ErrorAction Stop } | Should -Not -Throw
            $handler.TotalConnectionCount | Should -Be 0
        }

        It 'refuses regions that overlap' {
            $null = Start-UffdHandler $path $image
            $other = New-MmapRegion 64KiB 0x8000
            { $region, $other | Connect-UffdHandler $path -ErrorAction Stop } | Should -Throw -ErrorId 'MemoryRegionOverlap,*'
            $region | Read-GuestMemory 0 -As UInt64 | Should -Be 0
        }

        It 'says so where no region came' {
            { Get-MmapRegion nothing* | Connect-UffdHandler $path -ErrorAction Stop } | Should -Throw -ErrorId 'NoMemoryRegion,*'
        }

        It 'refuses a region that was removed' {
            $null = Start-UffdHandler $path $image
            $region | Remove-MmapRegion
            { $region | Connect-UffdHandler $path -ErrorAction Stop } | Should -Throw -ErrorId 'RegionDisposed,*'
        }
    }

    Context 'A user without rights' {
        It 'gets UffdDenied with the remedy, and memory that works as before' {
            if ((Get-Content /proc/sys/vm/unprivileged_userfaultfd -ErrorAction Ignore) -eq '1') {
                Set-ItResult -Skipped -Because 'every user may create a userfaultfd here: vm.unprivileged_userfaultfd is 1'
            }
            $shell = @(Get-OtherUserShell $TestDrive)
            & $shell[0] $shell[1..3] test -r /dev/userfaultfd
            if (-not $LASTEXITCODE) {
                Set-ItResult -Skipped -Because 'user 65534 may open /dev/userfaultfd here'
            }
            Set-Content "$TestDrive/denied.ps1" @'
param($Manifest, $Image)
Import-Module $Manifest
$handler = Start-UffdHandler "$HOME/vm.sock" $Image -InProcess
$region = New-MmapRegion 64KiB
$region | Connect-UffdHandler $handler.SocketPath -ErrorAction SilentlyContinue
$count = { @([IO.Directory]::GetFileSystemEntries("/proc/$PID/fd")).Where{ [IO.FileInfo]::new($_).LinkTarget -match '^socket:|userfaultfd' }.Count }
$before = & $count
$region | Connect-UffdHandler $handler.SocketPath -ErrorAction SilentlyContinue -ErrorVariable failure
[pscustomobject] @{
    Id       = $failure[0].FullyQualifiedErrorId
    Category = "$($failure[0].CategoryInfo.Category)"
    Message  = $failure[0].Exception.Message
    Leaked   = (& $count) - $before
    Value    = ($region | Read-GuestMemory 0x8000 1).Bytes[0]
    State    = "$($handler.State)"
} | ConvertTo-Json
'@
            $result = & $shell[0] $shell[1..99] -File "$TestDrive/denied.ps1" "$TestDrive/module/GuestMemory.psd1" $image | Out-String | ConvertFrom-Json
            $result.Id | Should -BeLike 'UffdDenied,*'
            $result.Category | Should -Be PermissionDenied
            $result.Message | Should -Match 'setfacl.*/dev/userfaultfd|/dev/userfaultfd.*setfacl|vm\.unprivileged_userfaultfd'
            $result.Leaked | Should -BeLessOrEqual 0
            $result.Value | Should -Be 0
            $result.State | Should -Be Listening
        }
    }

    It 'says what it gives' {
        (Get-Command Connect-UffdHandler).OutputType.Type | Should -Be ([GuestMemory.Core.GuestRegionMmap]), ([GuestMemory.Core.Userfault.UffdTouchResult])
    }

    It 'says that -<_> needs -Touch, and hands nothing over' -ForEach 'TouchCount', 'ThreadCount', 'Stride', 'Seed' {
        $options = @{ $_ = 2 }
        { New-MmapRegion 64KiB | Connect-UffdHandler "$TestDrive/none.sock" @options -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*'
    }
}
