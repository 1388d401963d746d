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
        foreach ($format in 'Raw', 'Chunked', 'Diff') {
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

    It 'completes formats' {
        Get-Completion 'Export-GuestMemory vm.mem -Format ' | Should -Be Chunked, Diff, Raw
    }

    It 'says what it gives' {
        (Get-Command Export-GuestMemory).OutputType.Type | Should -Be ([GuestMemory.Core.Images.ImageInfo])
    }
}
