BeforeAll {
    $manifest = (Resolve-Path "$PSScriptRoot/../../GuestMemory.psd1").Path
    Import-Module $manifest
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $pwsh = @(Get-PowerShellCommand)
    $folder = (New-Item -ItemType Directory "$TestDrive/program").FullName
}

Describe 'Start-DirtyTracking' {
    BeforeEach {
        $process = Open-TrackedProcess $folder
    }

    AfterEach {
        Clear-TestState
        ${process}?.Kill()
    }

    It 'tracks a range of a process that knows nothing of it' {
        $tracking = Start-DirtyTracking -ProcessId $process.Id -Address $process.Address -Size $process.Size
        $tracking | Should -BeOfType GuestMemory.Core.Processes.ProcessDirtyTracker
        $tracking.ProcessId | Should -Be $process.Id
        $tracking.ProcessName | Should -Be tracked
        $tracking.Address | Should -BeExactly $process.Address
        $tracking.Size | Should -BeExactly $process.Size
        $tracking.PageSize | Should -Be $process.PageSize
        $tracking.State | Should -Be Tracking
        $tracking.Standstill | Should -BeGreaterThan ([timespan]::Zero)
        Invoke-TrackedProcess $process 'w 3 5 6'
        ($tracking | Get-DirtyBitmap -AsRange).ForEach{ ($_.Address - $process.Address) / $process.PageSize } | Should -Be 3, 5
    }

    It 'tracks up to the end of the mapping unless a size is given' {
        $tracking = Start-DirtyTracking $process.Id ($process.Address + 16 * $process.PageSize)
        $tracking.Size | Should -BeGreaterOrEqual ($process.Size - 16 * $process.PageSize)
        Invoke-TrackedProcess $process 'w 3 16'
        # The kernel may have joined it with a mapping behind it.
        $bitmap = $tracking | Get-DirtyBitmap
        0, 1 | ForEach-Object { $bitmap.IsDirty($_) } | Should -Be $true, $false
    }

    It 'takes a process from the pipeline, hexadecimal addresses and sizes with units' {
        $tracking = Get-Process -Id $process.Id | Start-DirtyTracking -Address ('0x{0:x}' -f $process.Address) -Size 64KiB
        $tracking.Size | Should -Be 64KB
    }

    It 'says which memory there is unless an address is given' {
        $failure = { Start-DirtyTracking $process.Id -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*' -PassThru
        $failure.Exception.Message | Should -Match 'largest writable mappings are: 0x[0-9a-f]+, [0-9.]+ [KM]iB'
        $failure.Exception.Message | Should -Match "/proc/$($process.Id)/maps"
        Get-DirtyTracking | Should -BeNullOrEmpty
    }

    It 'does nothing with -WhatIf' {
        Start-DirtyTracking $process.Id $process.Address $process.Size -WhatIf | Should -BeNullOrEmpty
        Get-DirtyTracking | Should -BeNullOrEmpty
        Select-String -Path "/proc/$($process.Id)/smaps" -Pattern '^VmFlags:.* uw' | Should -BeNullOrEmpty
    }

    It 'lets the process live on when the shell is killed' {
        $script = "Import-Module '$manifest'; `$null = Start-DirtyTracking $($process.Id) $($process.Address) $($process.Size); Set-Content '$TestDrive/ready' x; Start-Sleep 600"
        $shell = Start-Process $pwsh[0] (@($pwsh[1..9]) + '-NoProfile', '-NonInteractive', '-Command', "`"$script`"").Where{ $_ } -PassThru
        try {
            Wait-Until { Test-Path "$TestDrive/ready" }
            Invoke-TrackedProcess $process 'w 3'
            { Start-DirtyTracking $process.Id $process.Address $process.Size -ErrorAction Stop } | Should -Throw -ErrorId 'RangeInUse,*' -Because 'the other shell tracks it'
        }
        finally {
            $shell.Kill()
            $shell.WaitForExit()
        }
        Invoke-TrackedProcess $process 'w 4'
        # The kernel closes the descriptors of a process after it has ended for its parent.
        Wait-Until { -not (Select-String -Path "/proc/$($process.Id)/smaps" -Pattern '^VmFlags:.* uw' -Quiet) }
        $tracking = Start-DirtyTracking $process.Id $process.Address $process.Size
        Invoke-TrackedProcess $process 'w 5'
        ($tracking | Get-DirtyBitmap).DirtyCount | Should -Be 1
    }

    It 'ends with the module' {
        $null = Start-DirtyTracking $process.Id $process.Address $process.Size
        Remove-Module GuestMemory
        Import-Module $manifest
        Select-String -Path "/proc/$($process.Id)/smaps" -Pattern '^VmFlags:.* uw' | Should -BeNullOrEmpty
        Invoke-TrackedProcess $process 'w 3'
    }

    It 'compares samples with -Source Compare' {
        $tracking = Start-DirtyTracking $process.Id $process.Address $process.Size -Source Compare
        $tracking.Source | Should -Be Compare
        $tracking.IsExact | Should -BeFalse
        $tracking.Standstill | Should -Be ([timespan]::Zero)
        Invoke-TrackedProcess $process 'w 3 5 6'
        ($tracking | Get-DirtyBitmap -AsRange).ForEach{ ($_.Address - $process.Address) / $process.PageSize } | Should -Be 3, 5
        $bitmap = Get-DirtyBitmap -ProcessId $process.Id -Clear
        $bitmap.DirtyCount | Should -Be 3
        $bitmap.Source | Should -Be "process $($process.Id), Compare"
        # What a page has is written again: the kernel would note it.
        Invoke-TrackedProcess $process 'o 3'
        ($tracking | Get-DirtyBitmap).DirtyCount | Should -Be 0
        $tracking | Stop-DirtyTracking
        { $tracking | Get-DirtyBitmap -ErrorAction Stop } | Should -Throw -ErrorId 'DirtyTrackingOff,*'
    }

    It 'tells what became present with -Source Mincore' {
        Invoke-TrackedProcess $process 'w 3'
        $tracking = Start-DirtyTracking $process.Id $process.Address $process.Size -Source Mincore
        Invoke-TrackedProcess $process 'w 3 7'
        ($tracking | Get-DirtyBitmap -AsRange).ForEach{ ($_.Address - $process.Address) / $process.PageSize } | Should -Be 7
    }

    It 'warns which source it took with -Source Auto, and why' {
        $null = Start-DirtyTracking $process.Id $process.Address $process.Size -Source Auto -WarningVariable first
        $first | Should -BeNullOrEmpty
        $tracking = Start-DirtyTracking $process.Id $process.Address $process.Size -Source Auto -WarningVariable second -WarningAction SilentlyContinue
        $tracking.IsExact | Should -BeFalse
        "$second" | Should -BeLike "*-Source $($tracking.Source)*not exact*Userfault: *Another userfaultfd*"
        Invoke-TrackedProcess $process 'w 3'
        (Get-DirtyBitmap -ProcessId $process.Id).DirtyCount | Should -Be 1, 1
    }

    It 'recommends other sources where one is refused' {
        $null = Start-DirtyTracking $process.Id $process.Address $process.Size
        $failure = { Start-DirtyTracking $process.Id $process.Address $process.Size -ErrorAction Stop } | Should -Throw -ErrorId 'RangeInUse,*' -PassThru
        $failure.Exception.Message | Should -Match 'Compare, SoftDirty, Mincore'
        $failure.ErrorDetails.RecommendedAction | Should -Match "'-Source Compare'"
        $failure = { Start-DirtyTracking 2147483647 0x10000 4KiB -ErrorAction Stop } | Should -Throw -PassThru
        "$($failure.ErrorDetails.RecommendedAction)" | Should -Not -Match Compare
    }

    It 'believes soft-dirty marks only where the kernel has them' {
        $failure = $null
        $tracking = Start-DirtyTracking $process.Id $process.Address $process.Size -Source SoftDirty -ErrorAction SilentlyContinue -ErrorVariable failure
        if (-not $failure) {
            Invoke-TrackedProcess $process 'w 3'
            ($tracking | Get-DirtyBitmap).IsDirty(3) | Should -BeTrue
            return
        }
        $failure.FullyQualifiedErrorId | Should -Be 'SoftDirtyUnsupported,GuestMemory.PowerShell.Commands.StartDirtyTrackingCommand'
        $failure.CategoryInfo.Category | Should -Be NotImplemented
        $failure.Exception.Message | Should -Match CONFIG_MEM_SOFT_DIRTY
        $failure.ErrorDetails.RecommendedAction | Should -Match "'-Source Compare'"
        Get-DirtyTracking | Should -BeNullOrEmpty
    }

    It 'does nothing with -Source <_> and -WhatIf' -ForEach Compare, SoftDirty, Mincore, Auto {
        Start-DirtyTracking $process.Id $process.Address $process.Size -Source $_ -WhatIf | Should -BeNullOrEmpty
        Get-DirtyTracking | Should -BeNullOrEmpty
    }

    It 'refuses <What> with <Id>' -ForEach @(
        @{ What = 'a process that is not there'; Id = 'ProcessNotFound'; Category = 'ObjectNotFound'; Make = { Start-DirtyTracking 2147483647 0x10000 4KiB -ErrorAction Stop } }
        @{ What = 'a process that is not there, without an address'; Id = 'ProcessNotFound'; Category = 'ObjectNotFound'; Make = { Start-DirtyTracking 2147483647 -ErrorAction Stop } }
        @{ What = 'this shell'; Id = 'ValueNotSupported'; Category = 'InvalidArgument'; Make = { Start-DirtyTracking $PID 0x10000 4KiB -ErrorAction Stop } }
        @{ What = 'an address without memory'; Id = 'RangeNotMapped'; Category = 'InvalidArgument'; Make = { Start-DirtyTracking $process.Id 0x1000 -ErrorAction Stop } }
        @{ What = 'a range that is mapped in part'; Id = 'RangeNotMapped'; Category = 'InvalidArgument'; Make = { Start-DirtyTracking $process.Id $process.Address 1TiB -ErrorAction Stop } }
        @{ What = 'no bytes'; Id = 'ZeroSize'; Category = 'InvalidArgument'; Make = { Start-DirtyTracking $process.Id $process.Address 0 -ErrorAction Stop } }
        @{ What = 'a part of a page'; Id = 'UnalignedSize'; Category = 'InvalidArgument'; Make = { Start-DirtyTracking $process.Id $process.Address 100 -ErrorAction Stop } }
        @{ What = 'an address inside a page'; Id = 'NotPageAligned'; Category = 'InvalidArgument'; Make = { Start-DirtyTracking $process.Id ($process.Address + 1) 4KiB -ErrorAction Stop } }
        @{ What = 'what is tracked already'; Id = 'RangeInUse'; Category = 'ResourceBusy'; Make = { 1..2 | ForEach-Object { Start-DirtyTracking $process.Id $process.Address -ErrorAction Stop } } }
    ) {
        $failure = $Make | Should -Throw -ErrorId "$Id,*" -PassThru
        $failure.CategoryInfo.Category | Should -Be $Category
        Invoke-TrackedProcess $process 'w 3'
    }

    It 'completes processes' {
        Get-Completion 'Start-DirtyTracking ' | Should -Contain "$($process.Id)"
        Get-Completion 'Start-DirtyTracking -Source ' | Should -Be Auto, Compare, Mincore, SoftDirty, Userfault
        Get-Completion "Start-DirtyTracking -ProcessId $($process.Id)" | Should -Contain "$($process.Id)"
    }
}
