BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $folder = (New-Item -ItemType Directory "$TestDrive/program").FullName
}

Describe 'Get-DirtyTracking' {
    AfterEach {
        Clear-TestState
        ${processes}?.ForEach{ $_.Kill() }
    }

    It 'is empty where nothing is tracked' {
        Get-DirtyTracking | Should -BeNullOrEmpty
        $failure = { Get-DirtyTracking -ProcessId $PID -ErrorAction Stop } | Should -Throw -ErrorId 'DirtyTrackingOff,*' -PassThru
        $failure.ErrorDetails.RecommendedAction | Should -BeLike "*'Start-DirtyTracking *"
    }

    It 'lists what is tracked, by process and address' {
        $processes = 1..2 | ForEach-Object { Open-TrackedProcess $folder } | Sort-Object Id
        foreach ($process in $processes) {
            foreach ($page in 32, 0) {
                $null = Start-DirtyTracking $process.Id ($process.Address + $page * $process.PageSize) 16KiB
            }
        }
        $trackings = Get-DirtyTracking
        $trackings.ProcessId | Should -Be ($processes[0, 0, 1, 1].Id)
        # Not $trackings.Address: an array has a method of that name.
        $trackings | ForEach-Object Address | Should -Be ($processes.ForEach{ $_.Address; $_.Address + 32 * $_.PageSize })
        (Get-DirtyTracking $processes[1].Id).ProcessId | Should -Be ($processes[1, 1].Id)
        ($processes[0] | Get-DirtyTracking -Address ($processes[0].Address + 5)).Address | Should -Be $processes[0].Address
        Get-DirtyTracking -Address 1 | Should -BeNullOrEmpty
        { Get-DirtyTracking $processes[0].Id 1 -ErrorAction Stop } | Should -Throw -ErrorId 'DirtyTrackingOff,*'

        $text = Get-DirtyTracking | Out-String -Width 120
        $text | Should -Match "$($processes[0].Id) tracked +Tracking +Userfault +True +0x[0-9a-f]+ +16 KiB"

        Get-Completion 'Get-DirtyTracking ' | Should -Be ($processes.Id | ForEach-Object { "$_" } | Sort-Object { [int] $_ })
        Get-Completion "Get-DirtyTracking $($processes[0].Id) -Address " | Should -Contain ('0x{0:x8}' -f $processes[0].Address)
    }

    It 'shows by which source, and whether that is exact' {
        $processes = @(Open-TrackedProcess $folder)
        foreach ($source in 'Mincore', 'Compare') {
            $null = Start-DirtyTracking $processes[0].Id $processes[0].Address -Source $source
        }
        (Get-DirtyTracking).Source | Should -Contain Mincore
        (Get-DirtyTracking).IsExact | Should -Be $false, $false
        Get-DirtyTracking | Out-String -Width 120 | Should -Match 'Tracking +Compare +False +0x'
    }

    It 'shows that a process has ended' {
        $processes = @(Open-TrackedProcess $folder)
        $tracking = Start-DirtyTracking $processes[0].Id $processes[0].Address
        $processes[0].Kill()
        $processes[0].WaitForExit()
        (Get-DirtyTracking).State | Should -Be Ended
        $failure = { $tracking | Get-DirtyBitmap -ErrorAction Stop } | Should -Throw -ErrorId 'ProcessEnded,*' -PassThru
        $failure.ErrorDetails.RecommendedAction | Should -Match 'Stop-DirtyTracking'
    }

    It 'says what it gives' {
        (Get-Command Get-DirtyTracking).OutputType.Type | Should -Be ([GuestMemory.Core.Processes.ProcessDirtyTracker])
    }
}
