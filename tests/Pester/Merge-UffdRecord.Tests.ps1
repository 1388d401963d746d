BeforeAll {
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $userfaultfd = Test-GuestMemorySupport Userfaultfd

    function Write-Record([string] $Path, [int[]] $Page) {
        # A record as a handler writes it: of an image of 8 pages, whose touches are those of a VM.
        $region = New-MmapRegion -Size 32KB -GuestAddress 0
        Connect-UffdHandler -Memory $region -SocketPath $handler.SocketPath
        foreach ($number in $Page) {
            $null = Read-GuestMemory -Memory $region -Address ($number * 4KB) -Size 1 -Raw
        }
        Wait-Until { (Get-UffdHandler -SocketPath $handler.SocketPath).FaultCount -eq $Page.Count }
        Remove-MmapRegion $region -Force
        $null = $handler | Stop-UffdHandler
        $Path | Should -Exist
    }

    function Get-RecordedPage([string] $Path) {
        $bytes = [IO.File]::ReadAllBytes($Path)
        for ($at = 32; $at -lt $bytes.Length; $at += 4) {
            [BitConverter]::ToUInt32($bytes, $at)
        }
    }
}

Describe 'Merge-UffdRecord' {
    BeforeEach {
        Skip-UnlessSupported $userfaultfd
        [IO.File]::WriteAllBytes("$TestDrive/vm.mem", [byte[]]::new(32KB))
        Remove-Item "$TestDrive/*.touch", "$TestDrive/merged" -ErrorAction Ignore
        foreach ($run in @{ Name = 'one'; Page = 7, 1, 0 }, @{ Name = 'two'; Page = 2, 7, 3, 1 }) {
            $handler = Start-UffdHandler "$TestDrive/vm.sock" "$TestDrive/vm.mem" -RecordPath "$TestDrive/$($run.Name).touch"
            Write-Record "$TestDrive/$($run.Name).touch" $run.Page
        }
    }

    AfterEach {
        Clear-TestState
    }

    It 'takes what any run touched, the earliest first' {
        Merge-UffdRecord "$TestDrive/one.touch", "$TestDrive/two.touch" "$TestDrive/merged" | Should -BeNullOrEmpty
        Get-RecordedPage "$TestDrive/merged" | Should -Be 2, 7, 1, 0, 3
    }

    It 'takes what all runs touched with -CommonOnly, from wildcards in this directory' {
        Push-Location $TestDrive
        try {
            $record = Merge-UffdRecord *.touch merged -CommonOnly -PassThru
        }
        finally {
            Pop-Location
        }
        Get-RecordedPage "$TestDrive/merged" | Should -Be 7, 1
        $record.PageCount, $record.Size, $record.ImageLength | Should -Be 2, 8KB, 32KB
        $record.Path | Should -Be "$TestDrive/merged"
    }

    It 'copies the pages into the result with -MemoryPath, and a handler reads them there' {
        $bytes = [byte[]]::new(32KB)
        foreach ($page in 0..7) {
            [Array]::Fill($bytes, [byte]($page + 1), $page * 4KB, 4KB)
        }
        [IO.File]::WriteAllBytes("$TestDrive/vm.mem", $bytes)
        $record = Merge-UffdRecord "$TestDrive/*.touch" "$TestDrive/merged" -MemoryPath "$TestDrive/vm.mem" -PassThru
        $record.PageCount, $record.Size, $record.HasPages | Should -Be 5, 20KB, $true
        (Get-Item "$TestDrive/merged").Length | Should -Be 24KB
        [IO.File]::ReadAllBytes("$TestDrive/merged")[4KB, 8KB, 12KB, 16KB, 20KB] | Should -Be 1, 2, 3, 4, 8

        $handler = Start-UffdHandler "$TestDrive/vm.sock" "$TestDrive/vm.mem" -Strategy Replay -ReplayPath "$TestDrive/merged"
        $region = New-MmapRegion -Size 32KB -GuestAddress 0
        Connect-UffdHandler -Memory $region -SocketPath $handler.SocketPath
        foreach ($page in 0..7) {
            (Read-GuestMemory -Memory $region -Address ($page * 4KB) -Size 1 -Raw)[0] | Should -Be ($page + 1)
        }
        Remove-MmapRegion $region -Force
        $handler | Stop-UffdHandler
    }

    It 'refuses a record that is older than the image, and layers of no image' {
        Merge-UffdRecord "$TestDrive/one.touch" "$TestDrive/merged" -MemoryPath "$TestDrive/vm.mem"
        (Get-Item "$TestDrive/vm.mem").LastWriteTime = (Get-Date).AddMinutes(1)
        { Start-UffdHandler "$TestDrive/vm.sock" "$TestDrive/vm.mem" -Strategy Replay -ReplayPath "$TestDrive/merged" -ErrorAction Stop } |
            Should -Throw '*was written after it*' -ErrorId 'InvalidRecord,*'
        { Merge-UffdRecord "$TestDrive/one.touch" "$TestDrive/other" -Layer "$TestDrive/vm.mem" -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*'
        { Merge-UffdRecord "$TestDrive/one.touch" "$TestDrive/other" -MemoryPath "$TestDrive/none" -ErrorAction Stop } | Should -Throw -ErrorId 'ImageNotFound,*'
        "$TestDrive/other" | Should -Not -Exist
    }

    It 'takes files from the pipeline' {
        Get-ChildItem "$TestDrive/*.touch" | Merge-UffdRecord -OutFile "$TestDrive/merged"
        Get-RecordedPage "$TestDrive/merged" | Should -Be 2, 7, 1, 0, 3
    }

    It 'gives what a handler replays' {
        Merge-UffdRecord "$TestDrive/*.touch" "$TestDrive/merged"
        $handler = Start-UffdHandler "$TestDrive/vm.sock" "$TestDrive/vm.mem" -Strategy Replay -ReplayPath "$TestDrive/merged"
        $region = New-MmapRegion -Size 32KB -GuestAddress 0
        Connect-UffdHandler -Memory $region -SocketPath $handler.SocketPath
        Wait-Until { $handler.GetFigures().FillByteCount -eq 5 * 4KB }
    }

    It 'replaces a file with -Force alone' {
        Set-Content "$TestDrive/merged" kept
        { Merge-UffdRecord "$TestDrive/*.touch" "$TestDrive/merged" -ErrorAction Stop } | Should -Throw -ErrorId 'FileExists,*'
        Get-Content "$TestDrive/merged" | Should -Be kept
        Merge-UffdRecord "$TestDrive/*.touch" "$TestDrive/merged" -Force
        Get-RecordedPage "$TestDrive/merged" | Should -HaveCount 5
    }

    It 'writes nothing where a record is missing' {
        { Merge-UffdRecord "$TestDrive/one.touch", "$TestDrive/none.touch" "$TestDrive/merged" -ErrorAction Stop } | Should -Throw -ErrorId 'RecordNotFound,*'
        Merge-UffdRecord "$TestDrive/one.touch", "$TestDrive/none*.touch" "$TestDrive/merged" -ErrorVariable failure -ErrorAction SilentlyContinue
        $failure.FullyQualifiedErrorId | Should -BeLike 'RecordNotFound,*'
        "$TestDrive/merged" | Should -Not -Exist
    }

    It 'refuses what is no record' {
        { Merge-UffdRecord "$TestDrive/one.touch", "$TestDrive/vm.mem" "$TestDrive/merged" -ErrorAction Stop } | Should -Throw -ErrorId 'InvalidRecord,*'
        "$TestDrive/merged" | Should -Not -Exist
    }

    It 'writes nothing with -WhatIf' {
        Merge-UffdRecord "$TestDrive/*.touch" "$TestDrive/merged" -WhatIf
        "$TestDrive/merged" | Should -Not -Exist
    }

    It 'says what it gives' {
        (Get-Command Merge-UffdRecord).OutputType.Type | Should -Be ([GuestMemory.Core.Userfault.UffdRecord])
    }
}
