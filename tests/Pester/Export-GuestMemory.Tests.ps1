BeforeAll {
    $manifest = (Resolve-Path "$PSScriptRoot/../../GuestMemory.psd1").Path
    Import-Module $manifest
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $userfaultfd = Test-GuestMemorySupport Userfaultfd

    function Get-Leftover {
        Get-ChildItem -Force $TestDrive -Filter *.part
    }
}

Describe 'Export-GuestMemory' {
    BeforeEach {
        $low = New-MmapRegion 1MiB -Name low -DirtyTracking
        $high = New-MmapRegion 64KiB 0x100000000 -Name high -DirtyTracking
        $image = "$TestDrive/vm.mem"
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'puts no file in the place of <What>, also with -Force' -ForEach @(
        @{ What = 'a device'; Make = { if ((id -u) -eq '0') { mknod "$TestDrive/special" c 1 3 } else { Set-ItResult -Skipped -Because 'needs root, to make a device' } } }
        @{ What = 'a pipe'; Make = { mkfifo "$TestDrive/special" } }
        @{ What = 'a link to a pipe'; Make = { mkfifo "$TestDrive/pipe"; ln -s pipe "$TestDrive/special" } }
        @{ What = 'a directory'; Make = { mkdir "$TestDrive/special" } }
    ) {
        & $Make
        $before = stat -c '%F %i' "$TestDrive/special"
        $low | Write-GuestMemory 0 1
        foreach ($format in 'Raw', 'Chunked', 'Diff', 'ElfCore', 'LiME', 'Avml') {
            { $low | Export-GuestMemory "$TestDrive/special" -Format $format -Force -ErrorAction Stop } | Should -Throw -ErrorId 'NotAFile,*'
        }
        { $low | Read-GuestMemory 0 4KiB -OutFile "$TestDrive/special" -Force -ErrorAction Stop } | Should -Throw -ErrorId 'NotAFile,*'
        stat -c '%F %i' "$TestDrive/special" | Should -Be $before
        ($low | Get-DirtyBitmap).DirtyCount | Should -Be 1
        Get-Leftover | Should -BeNullOrEmpty
    }

    Context 'Raw' {
        It 'writes the regions one behind the other, without the gap between them' {
            $high, $low | Write-GuestMemory 0x800 'low'
            $high, $low | Write-GuestMemory 0x100000000 'high'
            $high, $low | Export-GuestMemory $image | Should -BeNullOrEmpty
            $bytes = [IO.File]::ReadAllBytes($image)
            $bytes.Length | Should -Be (1MB + 64KB)
            [Text.Encoding]::ASCII.GetString($bytes, 0x800, 3) | Should -Be low
            [Text.Encoding]::ASCII.GetString($bytes, 1MB, 4) | Should -Be high
            Get-Leftover | Should -BeNullOrEmpty
        }

        It 'leaves holes where pages are zero' {
            $low | Write-GuestMemory 0x80000 1
            $low | Export-GuestMemory $image
            (Get-Item $image).Length | Should -Be 1MB
            $blocks, $size = (stat -c '%b %B' $image) -split ' '
            [long] $blocks * [long] $size | Should -BeLessThan 128KB
        }

        It 'says what it wrote with -PassThru' {
            $low | Write-GuestMemory 0x80000 1
            $info = $low, $high | Export-GuestMemory -Path $image -PassThru
            $info | Should -BeOfType GuestMemory.Core.Images.ImageInfo
            $info.Path | Should -Be $image
            $info.Format | Should -Be Raw
            $info.Size | Should -Be (1MB + 64KB)
            $info.BytesWritten | Should -Be 4096
            $info.PageCount | Should -Be 1
            $info.Digest | Should -BeNullOrEmpty
            $info | Out-String -Width 250 | Should -Match 'Raw\s+1\.1 MiB\s+4 KiB\s+1\s+/'
        }

        It 'gives the SHA-256 of the whole image with -Digest' {
            $low | Write-GuestMemory 0x80000 'something'
            $info = $low, $high | Export-GuestMemory $image -Digest -PassThru
            $info.Digest | Should -BeExactly (Get-FileHash $image -Algorithm SHA256).Hash.ToLowerInvariant()
        }

        It 'leaves what is dirty as it is' {
            $low | Write-GuestMemory 0 1
            $low | Export-GuestMemory $image
            ($low | Get-DirtyBitmap).DirtyCount | Should -Be 1
        }

        It 'resolves a relative path by the location of the session' {
            $folder = New-Item -ItemType Directory "$TestDrive/elsewhere"
            Push-Location $folder
            try {
                $low | Export-GuestMemory vm.mem
            }
            finally {
                Pop-Location
            }
            "$folder/vm.mem" | Should -Exist
        }

        It 'can be mapped again' {
            $low | Write-GuestMemory 0x1234 'round'
            $low | Export-GuestMemory $image
            $again = Get-Item $image | New-MmapRegion
            $again | Read-GuestMemory 0x1234 16 -Encoding ascii | Should -Be round
        }

        It 'replaces a file only with -Force' {
            Set-Content $image mine -NoNewline
            $failure = { $low | Export-GuestMemory $image -ErrorAction Stop } | Should -Throw -ErrorId 'FileExists,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be ResourceExists
            $failure.ErrorDetails.RecommendedAction | Should -Match '-Force'
            Get-Content $image | Should -Be mine
            Get-Leftover | Should -BeNullOrEmpty
            $low | Export-GuestMemory $image -Force
            (Get-Item $image).Length | Should -Be 1MB
        }

        It 'writes one address space a file' {
            $first = $low | Write-GuestMemory 0 1 -PassThru
            $second = $high | Write-GuestMemory 0x100000000 2 -PassThru
            $first, $second | Export-GuestMemory $image -ErrorAction SilentlyContinue -ErrorVariable failure
            $failure.FullyQualifiedErrorId | Should -BeLike 'ValueNotSupported,*'
            (Get-Item $image).Length | Should -Be 1MB
        }
    }

    Context 'Chunked' {
        It 'writes an image that a handler serves, <_>' -ForEach 'Brotli', 'ZLib' {
            Skip-UnlessSupported (Test-GuestMemorySupport Userfaultfd)
            $Compression = $_
            $region = New-MmapRegion 256KiB | Write-GuestMemory 0x12345 'chunks' -PassThru
            $info = $region | Export-GuestMemory "$TestDrive/vm.chunks" -Format Chunked -Compression $Compression -PassThru
            $info.Format | Should -Be Chunked
            $info.BytesWritten | Should -BeLessThan 8KB
            $handler = Start-UffdHandler "$TestDrive/chunks.sock" "$TestDrive/vm.chunks"
            $copy = New-MmapRegion 256KiB 0x100000000
            $copy | Connect-UffdHandler $handler.SocketPath
            $copy | Read-GuestMemory 0x100012345 6 -Encoding ascii | Should -Be chunks
            { $region | Export-GuestMemory "$TestDrive/vm.chunks" -Format Chunked -ErrorAction Stop } | Should -Throw -ErrorId 'FileExists,*'
        }
    }

    It 'compresses chunks alone' {
        { New-MmapRegion 4KiB 0x900000000 | Export-GuestMemory "$TestDrive/raw.mem" -Compression ZLib -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*'
    }

    Context 'Diff' {
        BeforeEach {
            $low | Write-GuestMemory 0x1000 'base'
            $low, $high | Export-GuestMemory $image
            $low, $high | Clear-DirtyBitmap
            $low | Write-GuestMemory 0x5000 'later'
            $high | Write-GuestMemory 0x100000FFF -Bytes 7, 8
        }

        It 'patches the pages that are dirty into the base image' {
            $info = $low, $high | Export-GuestMemory $image -Format Diff -PassThru
            $info.Format | Should -Be Diff
            $info.PageCount | Should -Be 3
            $info.BytesWritten | Should -Be 12KB
            $bytes = [IO.File]::ReadAllBytes($image)
            $bytes.Length | Should -Be (1MB + 64KB)
            [Text.Encoding]::ASCII.GetString($bytes, 0x1000, 4) | Should -Be base
            [Text.Encoding]::ASCII.GetString($bytes, 0x5000, 5) | Should -Be later
            $bytes[(1MB + 0xFFF)..(1MB + 0x1000)] | Should -Be 7, 8
            Get-Leftover | Should -BeNullOrEmpty
        }

        It 'equals a full image afterwards' {
            $low, $high | Export-GuestMemory $image -Format Diff
            $full = $low, $high | Export-GuestMemory "$TestDrive/full.mem" -Digest -PassThru
            (Get-FileHash $image).Hash | Should -Be $full.Digest
        }

        It 'leaves the other pages of the base alone' {
            $file = [IO.File]::OpenWrite($image)
            $file.Position = 0x9000
            $file.WriteByte(99)
            $file.Dispose()
            $low, $high | Export-GuestMemory $image -Format Diff
            [IO.File]::ReadAllBytes($image)[0x9000] | Should -Be 99
        }

        It 'makes a sparse file where there is no base' {
            $low, $high | Export-GuestMemory "$TestDrive/diff.mem" -Format Diff
            $bytes = [IO.File]::ReadAllBytes("$TestDrive/diff.mem")
            $bytes.Length | Should -Be (1MB + 64KB)
            [Text.Encoding]::ASCII.GetString($bytes, 0x5000, 5) | Should -Be later
            $bytes[0x1000..0x1003] | Should -Be 0, 0, 0, 0
            $blocks, $size = (stat -c '%b %B' "$TestDrive/diff.mem") -split ' '
            [long] $blocks * [long] $size | Should -BeLessThan 128KB
        }

        It 'takes the marks, unless -KeepDirty' {
            $low, $high | Export-GuestMemory $image -Format Diff -KeepDirty
            ($low, $high | Get-DirtyBitmap).DirtyCount | Should -Be 1, 2
            $low, $high | Export-GuestMemory $image -Format Diff
            ($low, $high | Get-DirtyBitmap).DirtyCount | Should -Be 0, 0
            ($low, $high | Export-GuestMemory $image -Format Diff -PassThru).PageCount | Should -Be 0
        }

        It 'needs dirty tracking' {
            $plain = New-MmapRegion 4KiB 0x200000000 -Name plain
            $failure = { $low, $plain | Export-GuestMemory "$TestDrive/diff.mem" -Format Diff -ErrorAction Stop } | Should -Throw -ErrorId 'DirtyTrackingOff,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be InvalidOperation
            $failure.Exception.Message | Should -Match "'plain'"
            $failure.ErrorDetails.RecommendedAction | Should -Match '-DirtyTracking'
            "$TestDrive/diff.mem" | Should -Not -Exist
            ($low | Get-DirtyBitmap).DirtyCount | Should -Be 1
        }

        It 'refuses a base of another size, unless -Force' {
            [IO.File]::WriteAllBytes("$TestDrive/other.mem", [byte[]] (1, 2, 3))
            $failure = { $low | Export-GuestMemory "$TestDrive/other.mem" -Format Diff -ErrorAction Stop } | Should -Throw -ErrorId 'BaseSizeMismatch,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be InvalidData
            [IO.File]::ReadAllBytes("$TestDrive/other.mem") | Should -Be 1, 2, 3
            ($low | Get-DirtyBitmap).DirtyCount | Should -Be 1
            $low | Export-GuestMemory "$TestDrive/other.mem" -Format Diff -Force
            (Get-Item "$TestDrive/other.mem").Length | Should -Be 1MB
            ($low | Get-DirtyBitmap).DirtyCount | Should -Be 0
        }

        It 'refuses a base that a handler serves, unless -Force' {
            $before = (Get-FileHash $image).Hash
            $handler = Start-UffdHandler "$TestDrive/vm.sock" $image
            $failure = { $low, $high | Export-GuestMemory $image -Format Diff -ErrorAction Stop } | Should -Throw -ErrorId 'ImageInUse,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be ResourceBusy
            $failure.Exception.Message | Should -Match 'Stop the handler'
            $failure.ErrorDetails.RecommendedAction | Should -Match 'Stop-UffdHandler.*-Force'
            (Get-FileHash $image).Hash | Should -Be $before
            ($low, $high | Get-DirtyBitmap).DirtyCount | Should -Be 1, 2
            $low, $high | Export-GuestMemory $image -Format Diff -Force
            (Get-FileHash $image).Hash | Should -Not -Be $before
            $handler.State | Should -Be Listening
        }

        It 'patches a base that is served no more' {
            Start-UffdHandler "$TestDrive/vm.sock" $image | Stop-UffdHandler
            { $low, $high | Export-GuestMemory $image -Format Diff -ErrorAction Stop } | Should -Not -Throw
        }

        It 'refuses a folder as the base' {
            $failure = { $low | Export-GuestMemory $TestDrive -Format Diff -Force -ErrorAction Stop } | Should -Throw -ErrorId 'NotAFile,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be InvalidArgument
            ($low | Get-DirtyBitmap).DirtyCount | Should -Be 1
        }

        It 'has no digest' {
            $failure = { $low, $high | Export-GuestMemory $image -Format Diff -Digest -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be InvalidArgument
            ($low | Get-DirtyBitmap).DirtyCount | Should -Be 1
        }
    }

    Context 'Bad input' {
        It 'refuses <What> with <Id>, and leaves no file' -ForEach @(
            @{ What = 'a folder that is not there'; Id = 'FileNotFound'; Category = 'ObjectNotFound'; Path = 'none/vm.mem' }
            @{ What = 'a folder as the file'; Id = 'FileExists'; Category = 'ResourceExists'; Path = '.' }
            @{ What = 'a path of another provider'; Id = 'NotAFilePath'; Category = 'InvalidArgument'; Path = 'Env:/vm.mem' }
        ) {
            Push-Location $TestDrive
            try {
                $failure = { $low | Export-GuestMemory $Path -ErrorAction Stop } | Should -Throw -ErrorId "$Id,*" -PassThru
            }
            finally {
                Pop-Location
            }
            $failure.CategoryInfo.Category | Should -Be $Category
            Get-ChildItem -Force $TestDrive | Should -BeNullOrEmpty
        }

        It 'leaves no file, and no mark lost, where a page cannot be read' -ForEach @(@{ Format = 'Raw' }, @{ Format = 'Diff' }) {
            $path = "$TestDrive/shrinks.img"
            [IO.File]::WriteAllBytes($path, [byte[]]::new(16KB))
            $region = New-MmapRegion 16KiB 0x200000000 -BackingPath $path -DirtyTracking
            $region | Write-GuestMemory 0x200002000 1
            Resize-File $path 4KB
            $failure = { $region | Export-GuestMemory $image -Format $Format -ErrorAction Stop } | Should -Throw -ErrorId 'PageNotAccessible,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be ReadError
            (Get-ChildItem -Force $TestDrive).Name | Should -Be shrinks.img
            ($region | Get-DirtyBitmap).DirtyCount | Should -Be 1
        }

        It 'names the file and the folder that another user may not write, and no file of its own' {
            $folder = New-Item -ItemType Directory "$TestDrive/other"
            try {
                $shell = @(Get-OtherUserShell $folder)
                Set-Content "$folder/export.ps1" @'
param($Manifest)
Import-Module $Manifest
New-MmapRegion 64KiB | Export-GuestMemory /etc/vm.mem -ErrorAction SilentlyContinue -ErrorVariable failure
"$($failure[0].FullyQualifiedErrorId) $($failure[0])"
'@
                $text = & $shell[0] $shell[1..20] -File "$folder/export.ps1" "$folder/module/GuestMemory.psd1" | Out-String
                $text | Should -Match '^FileAccessDenied,.* /etc/vm\.mem cannot be written: this user may not create files in /etc'
                $text | Should -Not -Match '\.part'
            }
            finally {
                Remove-Item -Recurse -Force $folder
            }
        }

        It 'leaves a file that is there as it was where a page cannot be read' {
            Set-Content $image mine -NoNewline
            $region = New-MmapRegion 4KiB 0x200000000 -Protection None
            { $region | Export-GuestMemory $image -Force -ErrorAction Stop } | Should -Throw -ErrorId 'PageNotAccessible,*'
            Get-Content $image | Should -Be mine
            Get-Leftover | Should -BeNullOrEmpty
        }

        It 'refuses regions that overlap' {
            $other = New-MmapRegion 4KiB 0x1000
            { $low, $other | Export-GuestMemory $image -ErrorAction Stop } | Should -Throw -ErrorId 'MemoryRegionOverlap,*'
            $image | Should -Not -Exist
        }

        It 'says so where no region came' {
            { Get-MmapRegion nothing* | Export-GuestMemory $image -ErrorAction Stop } | Should -Throw -ErrorId 'NoMemoryRegion,*'
            $image | Should -Not -Exist
        }

        It 'refuses a region that was removed' {
            $low | Remove-MmapRegion
            { $low | Export-GuestMemory $image -ErrorAction Stop } | Should -Throw -ErrorId 'RegionDisposed,*'
            $image | Should -Not -Exist
        }
    }

    It 'leaves no file when Ctrl+C ends it, also while it waits for a page nobody serves' {
        Skip-UnlessSupported $userfaultfd
        $listener = Open-Socket "$TestDrive/silent.sock" -Listen
        $high | Connect-UffdHandler "$TestDrive/silent.sock"
        $peer = $listener.Accept()
        $shell = [powershell]::Create()
        try {
            $null = $shell.AddScript({
                param($Manifest, $Regions, $Image)
                Import-Module $Manifest
                $Regions | Export-GuestMemory $Image
            }).AddArgument($manifest).AddArgument(($low, $high)).AddArgument($image)
            $exporting = $shell.BeginInvoke()
            Wait-Until { Get-Leftover }
            $exporting.IsCompleted | Should -BeFalse
            $stopping = $shell.BeginStop($null, $null)
            $stopping.AsyncWaitHandle.WaitOne([timespan]::FromSeconds(60)) | Should -BeTrue
            $shell.InvocationStateInfo.State | Should -Be Stopped
        }
        finally {
            # Frees the export if it was not stopped, so that the shell can be disposed.
            $high | Remove-MmapRegion -Force
            $shell.Dispose()
            $peer.Dispose()
            $listener.Dispose()
        }
        Get-Leftover | Should -BeNullOrEmpty
        $image | Should -Not -Exist
    }

    It 'writes nothing with -WhatIf' {
        $low | Write-GuestMemory 0 1
        $low | Export-GuestMemory $image -WhatIf
        $low | Export-GuestMemory $image -Format Diff -WhatIf
        $image | Should -Not -Exist
        ($low | Get-DirtyBitmap).DirtyCount | Should -Be 1
    }

    It 'exports the memory of a VM of a handler, <Where>' -ForEach @(
        @{ Where = 'in this shell'; InProcess = $true }
        @{ Where = 'in a process of its own'; InProcess = $false }
    ) {
        Skip-UnlessSupported (Test-GuestMemorySupport Userfaultfd)
        $content = Write-RandomFile "$TestDrive/base.mem" 64KB
        $handler = Start-UffdHandler "$TestDrive/uffd.sock" "$TestDrive/base.mem" -Strategy OnDemand -InProcess:$InProcess
        $guest = New-MmapRegion 64KiB 0x200000000 -Memfd
        $guest | Connect-UffdHandler "$TestDrive/uffd.sock" -ShareMemory
        $guest | Write-GuestMemory 0x200003000 -Bytes ([byte[]]::new(4096))
        Wait-Until { $handler.ConnectionCount -eq 1 }
        $info = Get-UffdVm uffd-1 | Export-GuestMemory "$TestDrive/vm.out" -PassThru
        $info.Size | Should -Be 64KB
        [Array]::Clear($content, 0x3000, 4096)
        $expected = [Convert]::ToHexString($content)
        [Convert]::ToHexString([IO.File]::ReadAllBytes("$TestDrive/vm.out")) | Should -Be $expected
        Export-GuestMemory "$TestDrive/vm.chunks" -UffdVm uffd-1 -Format Chunked
        "$TestDrive/vm.chunks" | Should -Exist
        { Export-GuestMemory "$TestDrive/vm.diff" -UffdVm uffd-1 -Format Diff -ErrorAction Stop } | Should -Throw -ErrorId 'DirtyTrackingOff,*'
        "$TestDrive/vm.diff" | Should -Not -Exist
        (Get-UffdVm).PercentPresent | Should -Be 6.25
        [Convert]::ToHexString(($guest | Read-GuestMemory 0x200000000 64KiB -Raw)) | Should -Be $expected
        { Export-GuestMemory "$TestDrive/none.out" -ErrorAction Stop } | Should -Throw -ErrorId 'NoMemoryRegion,*'
    }

    Context 'Live, of a handler <Where>' -ForEach @(
        @{ Where = 'in this shell'; InProcess = $true }
        @{ Where = 'in a process of its own'; InProcess = $false }
    ) {
        BeforeEach {
            Skip-UnlessSupported $userfaultfd
            $null = Write-RandomFile "$TestDrive/base.mem" 1MB
            $handler = Start-UffdHandler "$TestDrive/uffd.sock" "$TestDrive/base.mem" -Strategy OnDemand -InProcess:$InProcess -TrackDirty
            $peer = Open-LivePeer $TestDrive "$TestDrive/uffd.sock"
            Wait-Until { $handler.ConnectionCount -eq 1 }
            Set-UffdVm (Get-UffdVm) -Name web
        }

        AfterEach {
            $peer.Kill()
            $peer.WaitForExit()
            $peer.Dispose()
        }

        It 'writes what a VM has while it is stopped, runs the script block then, and lets it go on' {
            $null = Invoke-LivePeer $peer go
            # Before its first step that is what the image has there.
            $first = Invoke-LivePeer $peer steps
            Wait-Until { (Invoke-LivePeer $peer steps)[1] -ne $first[1] }
            $stopped = [Collections.Generic.List[object]]::new()
            $given = Get-UffdVm web | Export-GuestMemory "$TestDrive/web.mem" -Live -Digest -PassThru -WhilePaused {
                $stopped.Add((Get-Content "/proc/$($_.ProcessId)/status" | Select-String '^State:').Line)
                Export-GuestMemory "$TestDrive/stopped.mem" -UffdVm $_
                "said by $($args[0])"
            }
            $stopped | Should -Match 'tracing stop'
            $given[0] | Should -Be 'said by web'
            $given[1].Path | Should -Be "$TestDrive/web.mem"
            $given[1].Digest | Should -Be (Get-FileHash "$TestDrive/stopped.mem").Hash.ToLower()
            (Get-FileHash "$TestDrive/web.mem").Hash | Should -Be (Get-FileHash "$TestDrive/stopped.mem").Hash
            stat -c %a "$TestDrive/web.mem" | Should -Be 600
            $before = Invoke-LivePeer $peer steps
            Wait-Until { (Invoke-LivePeer $peer steps)[1] -gt $before[1] + 100 }
        }

        It 'stops nothing without a script block, nor with -NoStop' {
            $null = Invoke-LivePeer $peer go
            $info = Export-GuestMemory "$TestDrive/web.mem" -UffdVm web -Live -PassThru
            $info.Size | Should -Be 1MB
            Get-UffdVm web | Export-GuestMemory "$TestDrive/web.mem" -Live -Force -NoStop -WhilePaused { (Get-Content "/proc/$($_.ProcessId)/status" | Select-String '^TracerPid:').Line } |
                Should -Match ':\s+0$'
            $handler.Error | Should -BeNullOrEmpty
        }

        It 'leaves no file and the VM running where the script block fails' {
            $null = Invoke-LivePeer $peer go
            { Get-UffdVm web | Export-GuestMemory "$TestDrive/web.mem" -Live -WhilePaused { throw 'as meant' } } | Should -Throw 'as meant'
            "$TestDrive/web.mem" | Should -Not -Exist
            Get-Leftover | Should -BeNullOrEmpty
            Get-UffdVm web | Export-GuestMemory "$TestDrive/web.mem" -Live
            "$TestDrive/web.mem" | Should -Exist
        }

        It 'refuses <What> with <Id>' -ForEach @(
            @{ What = 'another format'; Id = 'LiveUnsupported'; Do = { Export-GuestMemory "$TestDrive/web.mem" -UffdVm web -Live -Format Chunked -ErrorAction Stop } }
            @{ What = 'regions'; Id = 'LiveUnsupported'; Do = { $low | Export-GuestMemory "$TestDrive/web.mem" -Live -ErrorAction Stop } }
            @{ What = '-WhilePaused without -Live'; Id = 'ValueNotSupported'; Do = { Export-GuestMemory "$TestDrive/web.mem" -UffdVm web -WhilePaused { } -ErrorAction Stop } }
            @{ What = '-NoStop without -WhilePaused'; Id = 'ValueNotSupported'; Do = { Export-GuestMemory "$TestDrive/web.mem" -UffdVm web -Live -NoStop -ErrorAction Stop } }
            @{ What = 'a file that is there'; Id = 'FileExists'; Do = { Export-GuestMemory "$TestDrive/base.mem" -UffdVm web -Live -ErrorAction Stop } }
        ) {
            $Do | Should -Throw -ErrorId "$Id,*"
            "$TestDrive/web.mem" | Should -Not -Exist
        }

        It 'needs a handler that tracks writes' {
            $null = Start-UffdHandler "$TestDrive/plain.sock" "$TestDrive/base.mem" -InProcess
            $plain = Open-LivePeer $TestDrive "$TestDrive/plain.sock"
            try {
                Wait-Until { Get-UffdVm -SocketPath "$TestDrive/plain.sock" }
                $failure = { Get-UffdVm -SocketPath "$TestDrive/plain.sock" | Export-GuestMemory "$TestDrive/web.mem" -Live -ErrorAction Stop } | Should -Throw -ErrorId 'DirtyTrackingOff,*' -PassThru
                $failure.ErrorDetails.RecommendedAction | Should -Match 'Start-UffdHandler -TrackDirty'
            }
            finally {
                $plain.Kill()
                $plain.Dispose()
            }
        }

        It 'writes nothing with -WhatIf' {
            Get-UffdVm web | Export-GuestMemory "$TestDrive/web.mem" -Live -WhatIf -WhilePaused { throw 'not run' }
            "$TestDrive/web.mem" | Should -Not -Exist
        }
    }

    Context 'Formats of other tools' {
        BeforeEach {
            $low | Write-GuestMemory 0x3000 'hello guest'
            $high | Write-GuestMemory 0x100000000 'up high'
            # What a Linux kernel keeps for its debuggers.
            $low | Write-GuestMemory 0x80000 (@(
                    'OSRELEASE=6.1.0-test', 'BUILD-ID=0123456789abcdef0123456789abcdef01234567', 'PAGESIZE=4096', 'SYMBOL(init_uts_ns)=ffffffff82a1d9c0', 'OFFSET(uts_namespace.name)=0'
                    'SYMBOL(swapper_pg_dir)=ffffffff82a10000', 'SYMBOL(_stext)=ffffffff81000000', 'NUMBER(phys_base)=0', 'NUMBER(pgtable_l5_enabled)=0', 'KERNELOFFSET=0', ''
                ) -join "`n")
        }

        It 'writes <_> with what sha256sum -c checks' -ForEach 'Raw', 'Chunked', 'ElfCore', 'LiME', 'Avml' {
            $info = $low, $high | Export-GuestMemory $image -Format $_ -Digest -PassThru
            $info.Format | Should -Be $_
            $info.Size | Should -Be (1MB + 64KB)
            $info | Out-String -Width 250 | Should -Match "$_\s+1\.1 MiB"
            Push-Location $TestDrive
            try {
                sha256sum -c vm.mem.sha256 | Should -Be 'vm.mem: OK'
            }
            finally {
                Pop-Location
            }
            stat -c %a $image "$image.sha256" | Should -Be 600, 600
            Get-Content "$image.sha256" | Should -BeLike "$($info.Digest)  vm.mem"
        }

        It 'writes LiME: its header before each region' {
            $high, $low | Export-GuestMemory $image -Format LiME
            $bytes = [IO.File]::ReadAllBytes($image)
            $bytes.Length | Should -Be (1MB + 64KB + 64)
            foreach ($range in @{ At = 0; First = 0; Last = 1MB - 1 }, @{ At = 1MB + 32; First = 0x100000000; Last = 0x10000FFFF }) {
                [BitConverter]::ToUInt32($bytes, $range.At) | Should -Be 0x4C694D45
                [BitConverter]::ToUInt32($bytes, $range.At + 4) | Should -Be 1
                [BitConverter]::ToUInt64($bytes, $range.At + 8) | Should -Be $range.First
                [BitConverter]::ToUInt64($bytes, $range.At + 16) | Should -Be $range.Last
            }
            [Text.Encoding]::ASCII.GetString($bytes, 0x3020, 11) | Should -Be 'hello guest'
            [Text.Encoding]::ASCII.GetString($bytes, 1MB + 64, 7) | Should -Be 'up high'
        }

        It 'writes a core file that readelf reads' {
            if (-not (Get-Command readelf -CommandType Application -ErrorAction Ignore)) { Set-ItResult -Skipped -Because 'needs readelf: apt-get install binutils' }
            $low, $high | Export-GuestMemory $image -Format ElfCore
            $text = readelf -hlnW $image 2>&1 | Out-String
            $text | Should -Match 'Type:\s+CORE'
            $text | Should -Match 'Machine:\s+Advanced Micro Devices X86-64'
            $text | Should -Match 'LOAD\s+0x[0-9a-f]+ 0x0000000000000000 0x0000000000000000 0x100000 0x100000'
            $text | Should -Match 'LOAD\s+0x[0-9a-f]+ 0x0000000100000000 0x0000000100000000 0x010000 0x010000'
            $text | Should -Match 'VMCOREINFO\s+0x'
            $text | Should -Not -Match 'Warning|Error'
        }

        It 'writes a core file that gdb reads' {
            if (-not (Get-Command gdb -CommandType Application -ErrorAction Ignore)) { Set-ItResult -Skipped -Because 'needs gdb: apt-get install gdb' }
            $low, $high | Export-GuestMemory $image -Format ElfCore
            $text = gdb -nx -batch -ex "core-file $image" -ex 'x/s 0x3000' -ex 'x/s 0x100000000' 2>&1 | Out-String
            $text | Should -Match '0x3000:\s+"hello guest"'
            $text | Should -Match '0x100000000:\s+"up high"'
        }

        It 'writes a core file that drgn takes for one of a Linux kernel' {
            $python = '/usr/bin/python3'
            & $python -c 'import drgn' 2>$null
            if ($LASTEXITCODE) { Set-ItResult -Skipped -Because 'needs drgn: apt-get install python3-drgn' }
            $low, $high | Export-GuestMemory $image -Format ElfCore
            Set-Content "$TestDrive/read.py" @'
import drgn, sys
program = drgn.Program()
program.set_core_dump(sys.argv[1])
print(bool(program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL), program.read(0x3000, 11, True).decode(), program.read(0x100000000, 7, True).decode())
'@
            & $python "$TestDrive/read.py" $image | Should -Be 'True hello guest up high'
        }

        It 'keeps what is behind a region, and a file beside that is no digest' {
            $path = "$TestDrive/vm.img"
            [IO.File]::WriteAllBytes($path, [byte[]]::new(16KB))
            $region = New-MmapRegion 16KiB 0x200000000 -BackingPath $path -DirtyTracking
            $region | Write-GuestMemory 0x200000000 1
            $inode = stat -c %i $path
            ln $path "$TestDrive/hard"
            foreach ($target in $path, "$TestDrive/hard") {
                foreach ($format in 'Raw', 'Diff', 'LiME') {
                    $failure = { $region | Export-GuestMemory $target -Format $format -Force -ErrorAction Stop } | Should -Throw -ErrorId 'TargetIsMapped,*' -PassThru
                    $failure.CategoryInfo.Category | Should -Be ResourceBusy
                }
            }
            stat -c %i $path | Should -Be $inode
            Set-Content "$image.sha256" 'my notes'
            { $region | Export-GuestMemory $image -Digest -ErrorAction Stop } | Should -Throw -ErrorId 'FileExists,*'
            Get-Content "$image.sha256" | Should -Be 'my notes'
        }

        It 'says that a disk is full, and keeps the old file' {
            if ((id -u) -ne '0') { Set-ItResult -Skipped -Because 'needs root, to mount a small tmpfs' }
            $disk = New-Item -ItemType Directory "$TestDrive/disk"
            mount -t tmpfs -o size=512k tmpfs $disk
            if ($LASTEXITCODE) { Set-ItResult -Skipped -Because 'this machine mounts no tmpfs' }
            try {
                Set-Content "$disk/vm.mem" mine -NoNewline
                $low | Write-GuestMemory 0 -Bytes ([Security.Cryptography.RandomNumberGenerator]::GetBytes(1MB))
                foreach ($format in 'Raw', 'ElfCore', 'LiME', 'Avml', 'Chunked') {
                    $failure = { $low | Export-GuestMemory "$disk/vm.mem" -Format $format -Force -ErrorAction Stop } | Should -Throw -ErrorId 'DiskFull,*' -PassThru
                    $failure.CategoryInfo.Category | Should -Be LimitsExceeded
                }
                { $low | Export-GuestMemory "$disk/vm.diff" -Format Diff -ErrorAction Stop } | Should -Throw -ErrorId 'DiskFull,*'
                ($low | Get-DirtyBitmap).DirtyCount | Should -Be 256
                (Get-ChildItem -Force $disk).Name | Should -Be vm.mem
                Get-Content "$disk/vm.mem" | Should -Be mine
            }
            finally {
                umount $disk
            }
        }
    }

    Context 'Several address spaces' {
        It 'get a file each, by a script block' {
            $low | Write-GuestMemory 0 'low'
            $high | Write-GuestMemory 0x100000000 'high'
            $info = $low, $high | Get-GuestMemory | ForEach-Object { $_ } | Export-GuestMemory -Path { "$TestDrive/$($_.Regions.Count).mem" } -PassThru
            $info.Path | Should -Be "$TestDrive/2.mem"
            $info = $high, $low | Export-GuestMemory -Path { "$TestDrive/$($_.Name).lime" } -Format LiME -PassThru
            $info.Path | Should -Be "$TestDrive/high.lime", "$TestDrive/low.lime"
            $info.Size | Should -Be 64KB, 1MB
            $each = foreach ($region in $low, $high) { Get-GuestMemory -Memory $region }
            ($each | Export-GuestMemory -Path { "$TestDrive/$($_.Size).mem" } -PassThru).Path | Should -Be "$TestDrive/1048576.mem", "$TestDrive/65536.mem"
        }

        It 'get the file of a property' {
            $one = $low | Add-Member -PassThru NoteProperty Path "$TestDrive/one.mem"
            $other = $high | Add-Member -PassThru NoteProperty Path "$TestDrive/other.mem"
            ($one, $other | Export-GuestMemory -PassThru).Path | Should -Be "$TestDrive/one.mem", "$TestDrive/other.mem"
        }

        It 'are one where their regions have the same file' {
            $third = New-MmapRegion 4KiB 0x200000000 -Name third
            $info = $low, $high, $third | Export-GuestMemory -Path { "$TestDrive/$($_.Name -eq 'third').mem" } -PassThru
            $info.Size | Should -Be (1MB + 64KB), 4KB
        }

        It 'go on after one that fails' {
            Set-Content "$TestDrive/low.mem" mine
            $low, $high | Export-GuestMemory -Path { "$TestDrive/$($_.Name).mem" } -ErrorVariable failure -ErrorAction SilentlyContinue
            $failure.FullyQualifiedErrorId | Should -BeLike 'FileExists,*'
            (Get-Item "$TestDrive/high.mem").Length | Should -Be 64KB
        }
    }

    Context 'As a job' {
        AfterEach {
            Get-Job | Remove-Job -Force
        }

        It 'is one that Get-Job, Wait-Job, Receive-Job and Remove-Job know' {
            $low | Write-GuestMemory 0x1000 'job'
            $job = $low | Export-GuestMemory $image -Format LiME -Digest -AsJob
            $job | Should -BeOfType System.Management.Automation.Job
            (Get-Job -Id $job.Id).PSJobTypeName | Should -Be ExportGuestMemory
            (Wait-Job $job).State | Should -Be Completed
            $info = Receive-Job $job
            $info.Format | Should -Be LiME
            $info.Digest | Should -Be (Get-FileHash $image).Hash.ToLower()
            $job.HasMoreData | Should -BeFalse
            Remove-Job $job
            Get-Job | Should -BeNullOrEmpty
        }

        It 'has the error of an export that fails' {
            Set-Content $image mine -NoNewline
            $job = $low | Export-GuestMemory $image -AsJob
            (Wait-Job $job).State | Should -Be Failed
            Receive-Job $job -ErrorAction SilentlyContinue -ErrorVariable failure
            $failure.FullyQualifiedErrorId | Should -BeLike 'FileExists*'
            $failure.ErrorDetails.RecommendedAction | Should -Match '-Force'
            Get-Content $image | Should -Be mine
        }

        It 'is one for each address space' {
            $jobs = $low, $high | Export-GuestMemory -Path { "$TestDrive/$($_.Name).mem" } -AsJob
            ($jobs | Wait-Job | Receive-Job).Size | Sort-Object | Should -Be 64KB, 1MB
            $jobs.Count | Should -Be 2
        }

        It 'leaves nothing when Stop-Job ends it, also while it waits for a page nobody serves' {
            Skip-UnlessSupported $userfaultfd
            $listener = Open-Socket "$TestDrive/silent.sock" -Listen
            $high | Connect-UffdHandler "$TestDrive/silent.sock"
            $peer = $listener.Accept()
            try {
                $job = $low, $high | Export-GuestMemory $image -AsJob
                Wait-Until { Get-Leftover }
                $job.State | Should -Be Running
                Stop-Job $job
                $job.State | Should -Be Stopped
                Get-Leftover | Should -BeNullOrEmpty
                $image | Should -Not -Exist
                Receive-Job $job | Should -BeNullOrEmpty
            }
            finally {
                $high | Remove-MmapRegion -Force
                $peer.Dispose()
                $listener.Dispose()
            }
        }

        It 'leaves nothing when the shell ends' {
            Skip-UnlessSupported $userfaultfd
            $listener = Open-Socket "$TestDrive/silent.sock" -Listen
            Set-Content "$TestDrive/exit.ps1" @'
param($Manifest, $Socket, $Image)
Import-Module $Manifest
$region = New-MmapRegion 64KiB
$region | Connect-UffdHandler $Socket
$null = $region | Export-GuestMemory $Image -AsJob
while (-not (Get-ChildItem -Force (Split-Path $Image) -Filter *.part)) { Start-Sleep -Milliseconds 20 }
'begun'
'@
            $pwsh = @(Get-PowerShellCommand)
            try {
                & $pwsh[0] $pwsh[1..9] -NoProfile -NonInteractive -File "$TestDrive/exit.ps1" $manifest "$TestDrive/silent.sock" $image | Should -Be begun
            }
            finally {
                $listener.Dispose()
            }
            Get-Leftover | Should -BeNullOrEmpty
            $image | Should -Not -Exist
        }

        It 'frees the memory of a VM of a handler when it has ended' {
            Skip-UnlessSupported $userfaultfd
            $content = Write-RandomFile "$TestDrive/base.mem" 64KB
            $handler = Start-UffdHandler "$TestDrive/uffd.sock" "$TestDrive/base.mem" -Strategy OnDemand
            $guest = New-MmapRegion 64KiB 0x200000000 -Memfd
            $guest | Connect-UffdHandler "$TestDrive/uffd.sock" -ShareMemory
            Wait-Until { $handler.ConnectionCount -eq 1 }
            $before = Get-DescriptorCount
            $job = Get-UffdVm uffd-1 | Export-GuestMemory "$TestDrive/vm.out" -AsJob
            (Wait-Job $job).State | Should -Be Completed
            Wait-Until { (Get-DescriptorCount) -le $before }
            [Convert]::ToHexString([IO.File]::ReadAllBytes("$TestDrive/vm.out")) | Should -Be ([Convert]::ToHexString($content))
        }

        It 'begins nothing with -WhatIf' {
            $low | Export-GuestMemory $image -AsJob -WhatIf | Should -BeNullOrEmpty
            Get-Job | Should -BeNullOrEmpty
        }
    }

    Context 'Live, of a VM of this shell' {
        BeforeEach {
            Skip-UnlessSupported $userfaultfd
            Skip-UnlessSupported (Test-GuestMemorySupport Kvm)
            $low | Write-GuestMemory 0x1000 'before'
            $vm = $low, $high | New-GuestVm vm
        }

        It 'writes what it has at the instant, runs the script block then, and clears no marks' {
            $before = ($low | Get-DirtyBitmap).DirtyCount
            $given = Get-GuestVm vm | Export-GuestMemory "$TestDrive/live.mem" -Live -Digest -PassThru -WhilePaused {
                $low | Write-GuestMemory 0x1000 'after!'
                $high | Write-GuestMemory 0x100000000 -Bytes ([byte[]]::new(65536) | ForEach-Object { 7 })
                "said by $($_.Name)"
            }
            $given[0] | Should -Be 'said by vm'
            $given[1].Size | Should -Be (1MB + 64KB)
            $given[1].PageCount | Should -Be 1
            $given[1].Digest | Should -Be (Get-FileHash "$TestDrive/live.mem").Hash.ToLower()
            stat -c %a "$TestDrive/live.mem" | Should -Be 600
            [Text.Encoding]::ASCII.GetString([IO.File]::ReadAllBytes("$TestDrive/live.mem")[0x1000..0x1005]) | Should -Be 'before'
            $low | Read-GuestMemory 0x1000 6 -Encoding ascii | Should -Be 'after!'
            ($low | Get-DirtyBitmap).DirtyCount | Should -Be $before
            Get-GuestVm vm | Export-GuestMemory "$TestDrive/live.mem" -Live -Force -NoStop -WhilePaused { 'without a stop' } | Should -Be 'without a stop'
            # Without -Live the same, of a VM that stands still.
            Get-GuestVm vm | Export-GuestMemory "$TestDrive/still.mem"
            (Get-FileHash "$TestDrive/still.mem").Hash | Should -Be (Get-FileHash "$TestDrive/live.mem").Hash
        }

        It 'has what a balloon takes meanwhile' {
            Get-GuestVm vm | Export-GuestMemory "$TestDrive/live.mem" -Live -WhilePaused {
                $null = $_ | Invoke-VmMemoryRequest -DynamicallyFreeMemoryRanges -Range 0x1000+4KiB
            }
            [Text.Encoding]::ASCII.GetString([IO.File]::ReadAllBytes("$TestDrive/live.mem")[0x1000..0x1005]) | Should -Be 'before'
            ($low | Read-GuestMemory 0x1000 1 -Raw)[0] | Should -Be 0
        }

        It 'leaves no file where the script block fails, and the memory as it was' {
            { Get-GuestVm vm | Export-GuestMemory "$TestDrive/live.mem" -Live -WhilePaused { throw 'as meant' } } | Should -Throw 'as meant'
            "$TestDrive/live.mem" | Should -Not -Exist
            Get-Leftover | Should -BeNullOrEmpty
            Get-GuestVm vm | Export-GuestMemory "$TestDrive/live.mem" -Live
            "$TestDrive/live.mem" | Should -Exist
        }

        It 'refuses <What> with <Id>' -ForEach @(
            @{ What = 'another format'; Id = 'LiveUnsupported'; Do = { $vm | Export-GuestMemory "$TestDrive/live.mem" -Live -Format Chunked -ErrorAction Stop } }
            @{ What = 'memory of a file'; Id = 'LiveUnsupported'; Do = {
                    $null = Write-RandomFile "$TestDrive/base.mem" 64KB
                    New-MmapRegion 64KiB -BackingPath "$TestDrive/base.mem" | New-GuestVm other | Export-GuestMemory "$TestDrive/live.mem" -Live -ErrorAction Stop
                }
            }
            @{ What = 'a script block as a job'; Id = 'ValueNotSupported'; Do = { $vm | Export-GuestMemory "$TestDrive/live.mem" -Live -AsJob -WhilePaused { } -ErrorAction Stop } }
            @{ What = '-NoStop without -WhilePaused'; Id = 'ValueNotSupported'; Do = { $vm | Export-GuestMemory "$TestDrive/live.mem" -Live -NoStop -ErrorAction Stop } }
            @{ What = 'a VM that was removed'; Id = 'VmDisposed'; Do = { $vm | Remove-GuestVm; $vm | Export-GuestMemory "$TestDrive/live.mem" -Live -ErrorAction Stop } }
        ) {
            $Do | Should -Throw -ErrorId "$Id,*"
            "$TestDrive/live.mem" | Should -Not -Exist
        }
    }

    It 'completes formats' {
        Get-Completion 'Export-GuestMemory vm.mem -Format ' | Should -Be Avml, Chunked, Diff, ElfCore, LiME, Raw
    }

    It 'says what it gives' {
        (Get-Command Export-GuestMemory).OutputType.Type | Should -Be ([GuestMemory.Core.Images.ImageInfo]), ([System.Management.Automation.Job])
    }
}
