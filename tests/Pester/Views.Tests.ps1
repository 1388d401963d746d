# The tables of GuestMemory.Format.ps1xml. A real object of each kind stands in the cmdlets' own tests; the widest values, which no
# host has all at once, are made up here.
BeforeDiscovery {
    $root = Split-Path (Split-Path $PSScriptRoot)
    $views = ([xml] (Get-Content -Raw (Join-Path $root src GuestMemory.PowerShell GuestMemory.Format.ps1xml))).SelectNodes('//View[TableControl]') |
        ForEach-Object { @{ View = $_.Name; Type = $_.ViewSelectedBy.TypeName; Labels = @($_.TableControl.TableHeaders.TableColumnHeader.Label) } }
}

BeforeAll {
    $root = Split-Path (Split-Path $PSScriptRoot)
    Import-Module (Join-Path $root GuestMemory.psd1)
    $low = 0ul
    $high = 0xffffff0012345000ul
    $last = 0xffffff0052445fffuL
    $size = 1073741824ul + 1024 * 1024   # 1.0 GiB; 1023.9 MiB is the widest
    $wide = [ulong] (1023.9 * 1MB)
    $path = '/srv/vm/a folder/with/a/long/name/that/goes/on/for/ever/vm0123456789.mem'
    $text = 'Reading it failed. ' * 4
    $none = [timespan]::Zero
    $slow = [timespan]::FromMilliseconds(999.9)

    function Get-Pair([string] $View) {
        # A small object and the widest one, in this order: PowerShell sizes columns by what comes first.
        $region = { param($Name, $Address, $End, $Size, $Path) @{ Name = $Name; GuestAddress = $Address; LastAddress = $End; Size = $Size; BackingPath = $Path; IsHugetlbfs = $null; DomainId = $null; ProcessId = $Path ? 4194304 : $null; DirtyLog = $null; DirtyTracking = [bool] $Path } }
        $latency = { param($Time) $all = @{}; foreach ($name in 'FirstTouch', 'LatencyP50', 'LatencyP90', 'LatencyP99', 'LatencyP999', 'LatencyMax', 'Duration') { $all[$name] = $Time }; $all }
        switch ($View) {
            region { & $region a $low 4095ul 4096ul $null; & $region the-large-region $high $last $wide $path }
            domain {
                @{ Id = 0; Name = 'a'; State = 'Idle'; IsHvm = $false; MemorySize = 4096ul; VcpuCount = 1 }
                @{ Id = 32751; Name = 'a-domain-with-a-long-name-that-goes-on-for-ever-and-does-not-fit-here'; State = 'Shutdown'; IsHvm = $true; MemorySize = $wide; VcpuCount = 128 }
            }
            memory {
                @{ Regions = @(@{ GuestAddress = $low }); LastAddress = 4095ul; Size = 4096ul; ProcessId = $null }
                @{ Regions = @(@{ GuestAddress = $high }) * 1234567; LastAddress = $last; Size = $wide; ProcessId = 4194304 }
            }
            mapping {
                @{ BaseHostVirtAddr = $low; Size = 4096ul; Offset = $low; PageSize = 4096ul }
                @{ BaseHostVirtAddr = $high; Size = $wide; Offset = $high; PageSize = 1GB }
            }
            bitmap {
                @{ StartAddress = $low; PageSize = 4096ul; PageCount = 1; DirtyCount = 0; Source = 'region a' }
                @{ StartAddress = $high; PageSize = 4096ul; PageCount = 1234567890; DirtyCount = 987654321; Source = 'process 4194304, offsets in the image' }
            }
            sample {
                @{ Time = [DateTimeOffset] '2026-01-01'; DirtyCount = 0; DirtySize = 0ul; Rate = 0.0; Source = 'region a'; HottestRanges = @() }
                @{ Time = [DateTimeOffset] '2026-12-31'; DirtyCount = 123456789; DirtySize = $wide; Rate = [double] $wide; Source = 'process 4194304, offsets in the image'; HottestRanges = @(@{ Address = $high; Size = $wide }) * 3 }
            }
            tracking {
                @{ ProcessId = 1; ProcessName = 'a'; State = 'Ended'; Source = 'Compare'; IsExact = $false; Address = $low; Size = 4096ul }
                @{ ProcessId = 4194304; ProcessName = 'a-long-name-123'; State = 'Tracking'; Source = 'Userfault'; IsExact = $true; Address = $high; Size = $wide }
            }
            match {
                @{ Address = $low; Region = 'a'; Context = @{ Address = $low; Bytes = [byte[]] (0, 1) } }
                @{ Address = $high; Region = 'a-name-that-is-wrapped'; Context = @{ Address = $high - 16; Bytes = [byte[]] (@(65) * 4128) } }
            }
            stored {
                @{ Name = 'a'; Generation = 1ul; Size = 4096ul; StoredSize = 0ul; UploadedSize = $null; Created = [DateTimeOffset] '2026-01-01'; SigningKey = $null }
                @{ Name = 'an-image-with-a-long-name-that-goes-on-for-ever-and-does-not-fit-here'; Generation = 1234567890ul; Size = $wide; StoredSize = $wide; UploadedSize = $wide; Created = [DateTimeOffset] '2026-12-31'; SigningKey = 'a' * 64 }
            }
            check {
                @{ IsWhole = $true; ChunkCount = 1; Size = 4096ul; Errors = @(); Location = '/a/b@1' }
                @{ IsWhole = $false; ChunkCount = 1234567890; Size = $wide; Errors = @('a') * 1234567; Location = $path }
            }
            collection {
                @{ Removed = 0; RemovedSize = 0ul; Waiting = 0; WaitingSize = 0ul; Kept = 0; KeptSize = 0ul }
                @{ Removed = 1234567890; RemovedSize = $wide; Waiting = 1234567890; WaitingSize = $wide; Kept = 1234567890; KeptSize = $wide }
            }
            kernel {
                @{ Address = $low; PhysicalAddress = $low; PageTable = $low; Levels = 4; Release = '6.1' }
                @{ Address = $high; PhysicalAddress = $high; PageTable = $last; Levels = 5; Release = '6.12.95+deb12-cloud-amd64-with-a-long-name' }
            }
            process {
                @{ ProcessId = 2; ParentId = 0; UserId = 0u; State = 'Idle'; PageTable = $null; Name = 'kthreadd' }
                @{ ProcessId = 4194304; ParentId = 4194303; UserId = 4294967294u; State = 'Uninterruptible'; PageTable = $last; Name = 'a-name-of-15-by' }
            }
            symbol {
                @{ Address = $low; Type = 'A'; Name = 'a' }
                @{ Address = $high; Type = 't'; Name = 'a_function_with_a_long_name_that_goes_on_and_does_not_fit_in_here.constprop.0.isra.0' }
            }
            difference {
                @{ Address = $low; LastAddress = 0ul; Size = 1ul; DifferentBytes = 1ul; Kind = 'Content' }
                @{ Address = $high; LastAddress = $last; Size = $wide; DifferentBytes = $wide; Kind = 'OnlyInSecond' }
            }
            range {
                @{ Address = $low; LastAddress = 4095ul; Size = 4096ul; PageCount = 1 }
                @{ Address = $high; LastAddress = $last; Size = $wide; PageCount = 1234567890 }
            }
            vm {
                @{ Name = 'a'; Memory = @{ Size = 4096ul }; Slots = @(@{ LogDirtyPages = $false }); DirtyLog = 'Plain'; IsDisposed = $false }
                @{ Name = 'a-vm-with-a-long-name-that-goes-on-for-ever-and-does-not-fit-in-here'; Memory = @{ Size = $wide }; Slots = @(@{ LogDirtyPages = $true }) * 12345; DirtyLog = 'ManualProtect'; IsDisposed = $false }
            }
            slot {
                @{ Slot = 0; GuestAddress = $low; LastAddress = 4095ul; Size = 4096ul; ReadOnly = $true; LogDirtyPages = $true; IsBase = $true }
                @{ Slot = 32763; GuestAddress = $high; LastAddress = $last; Size = $wide; ReadOnly = $false; LogDirtyPages = $false; IsBase = $false }
            }
            response {
                @{ Response = 'Err'; RegionId = $null; Slot = $null; Chain = $text }
                @{ Response = 'RegisterMemory'; RegionId = $high; Slot = 32763; Chain = $null }
            }
            record {
                @{ PageCount = 1; Size = 4096ul; ImageLength = 4096ul; Path = '/srv/a.touch' }
                @{ PageCount = 1234567890; Size = $wide; ImageLength = $wide; Path = $path }
            }
            service {
                @{ Id = 1; State = 'Running'; VmName = 'a'; ConnectionCount = 0; RequestCount = 0; ErrorCount = 0; SocketPath = '/run/a.sock'; Error = $null }
                @{ Id = 1234; State = 'Stopped'; VmName = 'a-vm-with-a-long-name'; ConnectionCount = 12345; RequestCount = 123456789; ErrorCount = 123456789; SocketPath = $path; Error = $text }
            }
            backend {
                @{ Name = 'a'; State = 'Listening'; Size = 512ul; ProcessId = $null; MemorySize = 0ul; IsLogging = $false; IsPostcopy = $false; IsReadOnly = $false; SocketPath = '/run/a.sock'; ImagePath = '/a.img'; Error = $null }
                @{ Name = 'a-back-end-with-a-long-name'; State = 'Connected'; Size = $wide; ProcessId = 4194304; MemorySize = $wide; IsLogging = $true; IsPostcopy = $true; IsReadOnly = $true; SocketPath = $path; ImagePath = $path; Error = $text }
            }
            export {
                @{ Name = 'a'; State = 'Listening'; Size = 4096ul; ConnectionCount = 0; ByteCount = 0; Uri = 'nbd://127.0.0.1:10809/'; Error = $null }
                @{ Name = 'an-export-with-a-long-name'; State = 'Stopped'; Size = $wide; ConnectionCount = 64; ByteCount = $wide; Uri = "nbd+unix:///?socket=$path"; Error = $text }
            }
            handler {
                @{ Id = 1; State = 'Serving'; ConnectionCount = 0; FaultCount = 0; ByteCount = 0; SocketPath = '/run/a.sock'; Error = $null } + (& $latency $none)
                @{ Id = 4194304; State = 'Listening'; ConnectionCount = 12345; FaultCount = 123456789; ByteCount = $wide; SocketPath = $path; Error = $text } + (& $latency $slow)
            }
            uffdImage {
                @{ Name = 'a'; State = 'Serving'; ConnectionCount = 0; MemoryPath = '/a.mem'; LayerPaths = @(); SocketPath = '/run/a.sock'; Error = $null }
                @{ Name = 'an-image-with-a-long-name-that-goes-on-for-ever'; State = 'Removing'; ConnectionCount = 12345; MemoryPath = $path; LayerPaths = @($path); SocketPath = $path; Error = $text }
            }
            uffdVm {
                @{ Id = 1; Name = 'a'; ProcessId = 1; State = 'Serving'; MemorySize = 4096ul; PercentPresent = 0.0; Image = 'a'; SocketPath = '/run/a.sock'; Error = $null }
                @{ Id = 12345; Name = 'a-vm-with-a-long-name-that-goes-on-for-ever-and-does-not-fit-in-here'; ProcessId = 4194304; State = 'Recovering'; MemorySize = $wide; PercentPresent = 100.0; Image = 'an-image-with-a-long-name'; SocketPath = $path; Error = $text }
            }
            figures {
                @{ VmName = $null; PercentPresent = 0.0; FaultCount = 0; ByteCount = 0; PoisonedCount = 0; Error = $null } + (& $latency $none)
                @{ VmName = 'a-vm-with-a-long-name-that-goes-on-for-ever-and-does-not-fit-in-here'; PercentPresent = 100.0; FaultCount = 123456789; ByteCount = $wide; PoisonedCount = 12345678; Error = $text } + (& $latency $slow)
            }
            touch {
                @{ TouchCount = 1; FaultCount = 0; ErrorCount = 0 } + (& $latency $none)
                @{ TouchCount = 12345678; FaultCount = 12345678; ErrorCount = 123456 } + (& $latency $slow)
            }
            feature {
                @{ Feature = 'Xen'; Supported = $true; Detail = 'Yes.'; Remedy = $null }
                @{ Feature = 'Kvm:ManualDirtyLogProtect'; Supported = $false; Detail = $text; Remedy = $text }
            }
            image {
                @{ Format = 'Raw'; Size = 4096ul; BytesWritten = 0ul; PageCount = 0; Path = '/a'; Digest = $null }
                @{ Format = 'Chunked'; Size = $wide; BytesWritten = $wide; PageCount = 1234567890; Path = $path; Digest = 'sha256:' + '0123456789abcdef' * 4 }
            }
        }
    }
}

Describe 'The view <View>' -ForEach $views {
    It 'shows a second, wider object whole in <_> columns' -ForEach 80, 120 {
        $pair = if ($View -eq 'request') {
            New-VmMemoryRequest -BalloonTargetReached -Size 1
            New-VmMemoryRequest -DynamicallyReclaimMemoryRanges -Range (1..20).ForEach{ '0xffffff0000000000+64KiB' }
        }
        else {
            Get-Pair $View | ForEach-Object { $object = [pscustomobject] $_; $object.PSTypeNames.Insert(0, $Type); $object }
        }
        @($pair).Count | Should -Be 2 -Because "the view $View needs an example here"

        $output = $pair | Out-String -Width $_
        $output | Should -Not -Match '\u2026|\.\.\.' -Because 'nothing is cut'
        $lines = $output.Trim("`r", "`n") -split "`n"
        $lines | ForEach-Object { $_.TrimEnd().Length } | Measure-Object -Maximum | ForEach-Object Maximum | Should -BeLessOrEqual $_
        ($lines[0].Trim() -split '\s+') | Should -Be $Labels -Because 'every column is there'
        # A number stands in one piece, with its unit; text may wrap.
        $numbers = switch -Regex ($Labels) {
            'Address|Addr$|RegionId' { '0xffffff0012345000|0xffffff0052445fff' }
            '^(Size|Bytes|Written)$' { '1023\.9 MiB' }
            '^(P50|P99|P99.9|Max|First|Duration)$' { '999\.9 ms' }
            '^Pages$' { '1234567890' }
            '^Faults$' { '12345678' }
        }
        foreach ($number in $numbers) {
            $output | Should -Match "(?m)(^| )($number)9?( |$)"
        }
    }
}
