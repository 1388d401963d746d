BeforeAll {
    $manifest = (Resolve-Path "$PSScriptRoot/../../GuestMemory.psd1").Path
    Import-Module $manifest
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $userfaultfd = Test-GuestMemorySupport Userfaultfd
    $python = Get-Command python3 -CommandType Application -ErrorAction Ignore | Select-Object -First 1
    $pwsh = @(Get-PowerShellCommand)

    function Connect-Peer([string] $Path) {
        $socket = [Net.Sockets.Socket]::new('Unix', 'Stream', 'Unspecified')
        $socket.Connect([Net.Sockets.UnixDomainSocketEndPoint]::new($Path))
        $socket
    }

    # Sends until all is sent or the handler has closed the connection.
    function Send-Text($Socket, [string] $Text) {
        $bytes = [Text.Encoding]::UTF8.GetBytes($Text)
        for ($sent = 0; $sent -lt $bytes.Length; $sent += $count) {
            $count = try { $Socket.Send($bytes, $sent, $bytes.Length - $sent, 'None') } catch [Net.Sockets.SocketException] { return }
        }
    }

    # What comes at the end of a VM's life: a VM that maps, connects and reads the image as if nothing had been.
    function Test-GoodVm($Handler, [byte[]] $Image) {
        $vm = New-MmapRegion $Image.Length 0x7000000000
        try {
            $vm | Connect-UffdHandler $Handler.SocketPath -ErrorAction Stop
            $content = $vm | Read-GuestMemory 0x7000000000 $Image.Length -Raw
            [Convert]::ToHexString($content) -eq [Convert]::ToHexString($Image)
        }
        finally {
            $vm | Remove-MmapRegion -Force
        }
    }
}

Describe 'Start-UffdHandler' {
    BeforeEach {
        $path = "$TestDrive/vm.sock"
        $image = "$TestDrive/vm.mem"
        $content = Write-RandomFile $image 64KB
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    Context 'A handler' {
        It 'listens where it was told' {
            $handler = Start-UffdHandler -SocketPath $path -MemoryPath $image
            $handler | Should -BeOfType GuestMemory.Core.Userfault.UffdHandler
            $handler.SocketPath | Should -Be $path
            $handler.MemoryPath | Should -Be $image
            $handler.Strategy | Should -Be Background
            $handler.State | Should -Be Listening
            $handler.ProcessId | Should -Be $PID
            $handler.WorkerProcessId | Should -Be $PID
            $handler.ConnectionCount | Should -Be 0
            $handler.FaultCount | Should -Be 0
            $handler.LatencyMax | Should -Be ([timespan]::Zero)
            $handler.Error | Should -BeNullOrEmpty
            stat -c %A $path | Should -Be 'srw-------'
        }

        It 'works with relative paths, from any folder' {
            Push-Location $TestDrive
            try {
                $handler = Start-UffdHandler vm.sock vm.mem
            }
            finally {
                Pop-Location
            }
            $handler.SocketPath | Should -Be $path
            $handler.MemoryPath | Should -Be $image
        }

        It 'takes the image from the pipeline' {
            (Get-Item $image | Start-UffdHandler $path).MemoryPath | Should -Be $image
            Get-UffdHandler | Stop-UffdHandler
            $region = New-MmapRegion 64KiB
            ($region | Export-GuestMemory "$TestDrive/other.mem" -PassThru | Start-UffdHandler $path).MemoryPath | Should -Be "$TestDrive/other.mem"
        }

        It 'takes a path of 107 bytes' {
            $long = $path.PadRight(107, 'x')
            $handler = Start-UffdHandler $long $image
            $handler.State | Should -Be Listening
            $long | Should -Exist
            $handler | Stop-UffdHandler
            $long | Should -Not -Exist
        }

        It 'replaces a socket that its process left behind' {
            $dead = Open-Socket $path
            # A hard link stays when the socket is closed and its own name is taken away.
            & ln $path "$TestDrive/left.sock"
            $dead.Dispose()
            (Start-UffdHandler "$TestDrive/left.sock" $image).State | Should -Be Listening
        }

        It 'serves several images at once' {
            $handlers = foreach ($name in 'a', 'b') {
                Copy-Item $image "$TestDrive/$name.mem"
                Start-UffdHandler "$TestDrive/$name.sock" "$TestDrive/$name.mem"
            }
            $handlers[0].Id | Should -Not -Be $handlers[1].Id
            @(Get-UffdHandler).Count | Should -Be 2
        }

        It 'opens the socket to a further user with -AllowUser' {
            $null = Start-UffdHandler $path $image -AllowUser 65534
            if ((id -u) -eq '0') {
                stat -c %u $path | Should -Be 65534
                stat -c %A $path | Should -Be 'srw-------'
            }
            else {
                stat -c %A $path | Should -Be 'srw-rw-rw-'
            }
        }

        It 'lets the user of -AllowUser connect' {
            if (-not $python) {
                Set-ItResult -Skipped -Because 'needs python3: apt-get install python3'
            }
            # Theirs may be another python3 than that of root.
            $user = @(Get-OtherUserCommand /usr/bin/env) + 'python3'
            & $user[0] $user[1..9] -c '' 2>$null
            if ($LASTEXITCODE) {
                Set-ItResult -Skipped -Because 'user 65534 has no python3: apt-get install python3'
            }
            $peer = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(b'nonsense'); s.recv(1)"
            $handler = Start-UffdHandler $path $image
            & $user[0] $user[1..9] -c $peer $path 2>$null
            $LASTEXITCODE | Should -Not -Be 0
            $handler.Error | Should -BeNullOrEmpty
            $handler | Stop-UffdHandler

            $handler = Start-UffdHandler $path $image -AllowUser 65534
            & $user[0] $user[1..9] -c $peer $path 2>$null
            Wait-Until { $handler.Error }
            $handler.Error | Should -Match 'of user 65534: The mapping list is not the expected JSON'
        }

        It 'lets several users and groups connect with -AllowUser and -AllowGroup, <Where>' -ForEach @(
            @{ Where = 'in this shell'; InProcess = $true }
            @{ Where = 'in a process of its own'; InProcess = $false }
        ) {
            if (-not $python) {
                Set-ItResult -Skipped -Because 'needs python3: apt-get install python3'
            }
            $user = @(Get-OtherUserCommand /usr/bin/env) + 'python3'
            & $user[0] $user[1..9] -c '' 2>$null
            if ($LASTEXITCODE) {
                Set-ItResult -Skipped -Because 'user 65534 has no python3: apt-get install python3'
            }
            # Whether a user with a group, and perhaps a supplementary one, is heard: what it says is answered by an error.
            $peer = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(b'nonsense'); s.recv(1)"
            function Test-Peer([object] $Handler, [int] $User, [int] $Group, [string] $Groups) {
                $more = if ($Groups) { "--groups=$Groups" } else { '--clear-groups' }
                setpriv "--reuid=$User" "--regid=$Group" $more /usr/bin/env python3 -c $peer $path 2>$null
                Wait-Until { $LASTEXITCODE -or $Handler.Error }
                [bool] ($Handler.Error -match "of user ${User}: The mapping list is not the expected JSON")
            }
            function Test-Handler([hashtable] $Allowed, [int] $User, [int] $Group, [string] $Groups) {
                $handler = Start-UffdHandler $path $image -InProcess:$InProcess @Allowed
                Test-Peer $handler $User $Group $Groups
                $handler | Stop-UffdHandler
            }
            $two = @{ AllowUser = '65533', '65534' }
            Test-Handler $two 65534 65534 | Should -BeTrue
            Test-Handler $two 65533 65533 | Should -BeTrue
            Test-Handler $two 65532 65532 | Should -BeFalse
            $group = @{ AllowGroup = 4242 }
            Test-Handler $group 65534 4242 | Should -BeTrue
            Test-Handler $group 65534 65534 '7,4242' | Should -BeTrue
            Test-Handler $group 65534 65534 '7' | Should -BeFalse
            Test-Handler @{ AllowUser = 65533; AllowGroup = '4241', 4242 } 65532 65532 4241 | Should -BeTrue
            $null = Start-UffdHandler $path $image -AllowGroup 4242
            stat -c '%g %A' $path | Should -Be '4242 srw-rw----'
        }

        It 'serves memory of this shell' {
            Skip-UnlessSupported $userfaultfd
            $source = New-MmapRegion 64KiB 0x10000000 | Write-GuestMemory 0x10000123 'the source' -PassThru
            $handler = Start-UffdHandler $path -Memory $source -InProcess
            $handler.MemoryPath | Should -Be 'memory of this process'
            $vm = New-MmapRegion 64KiB 0x20000000
            $vm | Connect-UffdHandler $path
            $vm | Read-GuestMemory 0x20000123 10 -Encoding ascii | Should -Be 'the source'
            $source | Remove-MmapRegion -ErrorAction SilentlyContinue -ErrorVariable failure
            $failure.FullyQualifiedErrorId | Should -BeLike 'RegionInUse,*'
        }

        It 'writes figures as JSON' {
            $figures = Start-UffdHandler $path $image -AsJson | ConvertFrom-Json
            $figures.faults.all | Should -Be 0
        }

        It 'writes a line of JSON each second while it waits' {
            Skip-UnlessSupported $userfaultfd
            $vm = New-MmapRegion 64KiB 0x30000000
            $waiting = Start-ThreadJob {
                Import-Module $using:manifest
                Start-UffdHandler $using:path $using:image -Strategy OnDemand -Wait -AsJson
            }
            try {
                Wait-Until { Test-Path $path }
                Start-Sleep -Milliseconds 1500
                $vm | Connect-UffdHandler $path
                $null = $vm | Read-GuestMemory 0x30000000 64KiB
                $lines = @($waiting | Wait-Job -Timeout 20 | Receive-Job)
            }
            finally {
                $waiting | Remove-Job -Force
            }
            $lines.Count | Should -BeGreaterThan 2
            ($lines[0] | ConvertFrom-Json).faults.all | Should -Be 0
            ($lines[-1] | ConvertFrom-Json).faults.all | Should -Be 16
        }

        It 'gives a VMM that says nothing up after -HandoverTimeout, <Where>' -ForEach @(
            @{ Where = 'in this shell'; InProcess = $true }
            @{ Where = 'in a process of its own'; InProcess = $false }
        ) {
            $handler = Start-UffdHandler $path $image -HandoverTimeout 0.2 -InProcess:$InProcess
            $peer = Connect-Peer $path
            try {
                $peer.ReceiveTimeout = 10000
                $peer.Receive([byte[]]::new(1)) | Should -Be 0
                Wait-Until { $handler.Error }
                $handler.Error | Should -Match 'within 0.2 s'
                $handler.State | Should -Be Listening
            }
            finally {
                $peer.Dispose()
            }
        }

        It 'fails when nobody connects within -AcceptTimeout, <Where>' -ForEach @(
            @{ Where = 'in this shell'; InProcess = $true }
            @{ Where = 'in a process of its own'; InProcess = $false }
        ) {
            $handler = Start-UffdHandler $path $image -AcceptTimeout 0.3 -InProcess:$InProcess
            Wait-Until { $handler.State -eq 'Failed' }
            $handler.State | Should -Be Failed
            $handler.Error | Should -Match 'No VMM has connected within 0.3 s'
            $path | Should -Not -Exist
        }

        It 'does not count the time for later ones, <Where>' -ForEach @(
            @{ Where = 'in this shell'; InProcess = $true }
            @{ Where = 'in a process of its own'; InProcess = $false }
        ) {
            $handler = Start-UffdHandler $path $image -AcceptTimeout 1 -InProcess:$InProcess
            (Connect-Peer $path).Dispose()
            Start-Sleep -Milliseconds 1500
            $handler.State | Should -Be Listening
        }

        It 'looks like a row of figures' {
            $view = Start-UffdHandler $path $image | Out-String -Width 250
            $view | Should -Match 'Id\s+State\s+VMs\s+Faults\s+Bytes\s+P50\s+P99\s+SocketPath'
            $view | Should -Match "Listening\s+0\s+0\s+0 B\s+-\s+-\s+$([regex]::Escape($path))"
        }
    }

    Context 'Bad input' {
        It 'refuses <What> with <Id>, and leaves no socket, handler or descriptor' -ForEach @(
            @{ What = 'a socket path of 108 bytes'; Id = 'SocketPathTooLong'; Category = 'InvalidArgument'; Socket = 'long'; Memory = 'vm.mem' }
            @{ What = 'a folder that is not there'; Id = 'SocketNotFound'; Category = 'ObjectNotFound'; Socket = 'none/vm.sock'; Memory = 'vm.mem' }
            @{ What = 'a path where a file is'; Id = 'NotASocket'; Category = 'InvalidOperation'; Socket = 'vm.mem'; Memory = 'vm.mem' }
            @{ What = 'a path where a folder is'; Id = 'NotASocket'; Category = 'InvalidOperation'; Socket = '.'; Memory = 'vm.mem' }
            @{ What = 'an image that is not there'; Id = 'ImageNotFound'; Category = 'ObjectNotFound'; Socket = 'vm.sock'; Memory = 'none.mem' }
            @{ What = 'an image in a folder that is not there'; Id = 'ImageNotFound'; Category = 'ObjectNotFound'; Socket = 'vm.sock'; Memory = 'none/vm.mem' }
            @{ What = 'an empty image'; Id = 'ImageUnreadable'; Category = 'ReadError'; Socket = 'vm.sock'; Memory = 'empty.mem' }
            @{ What = 'a folder as the image'; Id = 'ImageUnreadable'; Category = 'ReadError'; Socket = 'vm.sock'; Memory = '.' }
            @{ What = 'a device as the image'; Id = 'ImageUnreadable'; Category = 'ReadError'; Socket = 'vm.sock'; Memory = '/dev/zero' }
            @{ What = 'a pipe as the image'; Id = 'ImageUnreadable'; Category = 'ReadError'; Socket = 'vm.sock'; Memory = 'pipe' }
            @{ What = 'a pipe as the record to replay'; Id = 'InvalidRecord'; Category = 'InvalidData'; Socket = 'vm.sock'; Memory = 'vm.mem'; More = @{ ReplayPath = 'pipe' } }
            @{ What = 'a pipe as the place of a record'; Id = 'InvalidRecord'; Category = 'InvalidData'; Socket = 'vm.sock'; Memory = 'vm.mem'; More = @{ RecordPath = 'pipe' } }
            @{ What = 'a group nobody knows'; Id = 'GroupNotFound'; Category = 'ObjectNotFound'; Socket = 'vm.sock'; Memory = 'vm.mem'; More = @{ AllowGroup = 'root', 'no-such-group' } }
            @{ What = 'a user nobody knows'; Id = 'UserNotFound'; Category = 'ObjectNotFound'; Socket = 'vm.sock'; Memory = 'vm.mem'; More = @{ AllowUser = 'no-such-user' } }
            @{ What = 'another user inside the shell'; Id = 'ValueNotSupported'; Category = 'InvalidArgument'; Socket = 'vm.sock'; Memory = 'vm.mem'; More = @{ User = 'nobody' } }
            @{ What = 'a folder that everyone may write to'; Id = 'InsecureDirectory'; Category = 'SecurityError'; Socket = 'open/vm.sock'; Memory = 'vm.mem' }
            @{ What = 'a path of another provider'; Id = 'NotAFilePath'; Category = 'InvalidArgument'; Socket = 'Env:/vm.sock'; Memory = 'vm.mem' }
        ) {
            $null = New-Item "$TestDrive/empty.mem"
            $null = New-Item -ItemType Directory "$TestDrive/open"
            chmod 777 "$TestDrive/open"
            mkfifo "$TestDrive/pipe"
            $Socket = $Socket -eq 'long' ? $path.PadRight(108, 'x') : $Socket
            $arguments = @{ SocketPath = $Socket; MemoryPath = $Memory } + ($More ?? @{})
            $files = (Get-ChildItem -Recurse -Force $TestDrive).Name
            Push-Location $TestDrive
            try {
                $null = { Start-UffdHandler @arguments -ErrorAction Stop } | Should -Throw -PassThru
                $descriptors = Get-DescriptorCount
                $failure = { Start-UffdHandler @arguments -ErrorAction Stop } | Should -Throw -ErrorId "$Id,*" -PassThru
            }
            finally {
                Pop-Location
            }
            $failure.CategoryInfo.Category | Should -Be $Category
            Get-UffdHandler | Should -BeNullOrEmpty
            (Get-ChildItem -Recurse -Force $TestDrive).Name | Should -Be $files
            Get-DescriptorCount | Should -BeLessOrEqual $descriptors
            [IO.File]::ReadAllBytes($image).Length | Should -Be 64KB
        }

        It 'listens with -Force where everyone may write' {
            $null = New-Item -ItemType Directory "$TestDrive/open"
            chmod 777 "$TestDrive/open"
            (Start-UffdHandler "$TestDrive/open/vm.sock" $image -Force).State | Should -Be Listening
        }

        It 'listens where everyone may write and only the owner may remove' {
            $null = New-Item -ItemType Directory "$TestDrive/sticky"
            chmod 1777 "$TestDrive/sticky"
            (Start-UffdHandler "$TestDrive/sticky/vm.sock" $image).State | Should -Be Listening
        }

        It 'leaves a path alone where somebody listens, also with -Force' {
            $other = Open-Socket $path -Listen
            try {
                foreach ($force in $false, $true) {
                    $failure = { Start-UffdHandler $path $image -Force:$force -ErrorAction Stop } | Should -Throw -ErrorId 'SocketInUse,*' -PassThru
                    $failure.CategoryInfo.Category | Should -Be ResourceBusy
                    $failure.Exception.Message | Should -Match ([regex]::Escape($path))
                }
                Get-UffdHandler | Should -BeNullOrEmpty
                $client = Connect-Peer $path
                $client.Connected | Should -BeTrue
                $client.Dispose()
                $other.Poll(0, 'SelectRead') | Should -BeTrue
            }
            finally {
                $other.Dispose()
            }
        }

        It 'leaves a handler of this shell alone' {
            $handler = Start-UffdHandler $path $image
            { Start-UffdHandler $path $image -ErrorAction Stop } | Should -Throw -ErrorId 'SocketInUse,*'
            $handler.State | Should -Be Listening
            $path | Should -Exist
            $handler.Error | Should -BeNullOrEmpty
        }
    }

    Context 'Bad peers' {
        BeforeEach {
            Skip-UnlessSupported $userfaultfd
            $handler = Start-UffdHandler $path $image
            Test-GoodVm $handler $content | Should -BeTrue
            Wait-Until { $handler.ConnectionCount -eq 0 -and $handler.State -eq 'Listening' }
            $descriptors = Get-DescriptorCount
            $good = '[{"base_host_virt_addr":140000000000000,"size":65536,"offset":0,"page_size":4096}]'
        }

        It 'outlives a peer that sends <What>' -ForEach @(
            @{ What = 'no descriptor'; Text = '[{"base_host_virt_addr":140000000000000,"size":65536,"offset":0,"page_size":4096}]'; Expected = 'without a descriptor' }
            @{ What = 'broken JSON'; Text = '[{"base_host_virt_addr":}]'; Expected = 'not the expected JSON' }
            @{ What = 'something else'; Text = "GET / HTTP/1.1`r`n`r`n"; Expected = 'not the expected JSON' }
            @{ What = 'an object'; Text = '{"base_host_virt_addr":0,"size":65536,"offset":0}'; Expected = 'not the expected JSON|without a descriptor' }
            @{ What = 'JSON of 10 MB'; Text = '[' + '{"base_host_virt_addr":140000000000000,"size":65536,"offset":0,"page_size":4096},' * 131072; Expected = 'at most 1048576' }
            @{ What = 'a string of 10 MB'; Text = '["' + 'x' * 10MB; Expected = 'longer than 4096 bytes' }
            @{ What = 'a million levels'; Text = '[' * 1000000; Expected = 'not the expected JSON' }
        ) {
            $peer = Connect-Peer $path
            try {
                Send-Text $peer $Text
                Wait-Until { $handler.Error }
            }
            finally {
                $peer.Dispose()
            }
            $handler.Error | Should -Match $Expected
            $handler.Error | Should -Match "^Process $PID of user $(id -u):"
            $handler.State | Should -Be Listening
            Test-GoodVm $handler $content | Should -BeTrue
            Wait-Until { (Get-DescriptorCount) -le $descriptors }
        }

        It 'closes the connection of a peer that broke the rules' {
            $peer = Connect-Peer $path
            try {
                Send-Text $peer 'nonsense'
                $peer.ReceiveTimeout = 60000
                # The end of the stream, or a reset where something was left unread.
                $received = try { $peer.Receive([byte[]]::new(16)) } catch [Net.Sockets.SocketException] { $_.Exception.InnerException.SocketErrorCode }
                $received | Should -BeIn 0, ConnectionReset
            }
            finally {
                $peer.Dispose()
            }
        }

        It 'outlives a peer that connects and dies' {
            1..5 | ForEach-Object { (Connect-Peer $path).Dispose() }
            Test-GoodVm $handler $content | Should -BeTrue
            Wait-Until { $handler.State -eq 'Listening' -and (Get-DescriptorCount) -le $descriptors }
        }

        It 'outlives a peer that dies in the middle of its JSON' {
            $peer = Connect-Peer $path
            Send-Text $peer $good.Substring(0, 20)
            $peer.Dispose()
            Wait-Until { $handler.Error }
            $handler.Error | Should -Match 'closed the connection in the middle of the hand-over, after 20 bytes and 0 descriptors'
            $handler.State | Should -Be Listening
            Test-GoodVm $handler $content | Should -BeTrue
            Wait-Until { (Get-DescriptorCount) -le $descriptors }
        }

        It 'gives up a peer that hangs<When>, and serves others meanwhile' -ForEach @(@{ When = ''; Length = 0 }, @{ When = ' in the middle of its JSON'; Length = 20 }) {
            $peer = Connect-Peer $path
            try {
                Send-Text $peer $good.Substring(0, $Length)
                Test-GoodVm $handler $content | Should -BeTrue
                Wait-Until { $handler.Error }
                $handler.Error | Should -Match 'did not hand its memory over within 5 s'
                Wait-Until { (Get-DescriptorCount) -le $descriptors + 1 }
            }
            finally {
                $peer.Dispose()
            }
            Test-GoodVm $handler $content | Should -BeTrue
            $handler.State | Should -BeIn Listening, Serving
            Wait-Until { (Get-DescriptorCount) -le $descriptors }
        }

        It 'outlives many bad peers at once' {
            $peers = 1..50 | ForEach-Object { Connect-Peer $path }
            try {
                $peers | ForEach-Object { Send-Text $_ 'nonsense' }
                Test-GoodVm $handler $content | Should -BeTrue
            }
            finally {
                $peers.ForEach('Dispose')
            }
            Wait-Until { (Get-DescriptorCount) -le $descriptors }
        }

        It 'refuses the hand-over of a VM that is larger than the image' {
            $region = New-MmapRegion 128KiB
            $region | Connect-UffdHandler $path
            Wait-Until { $handler.Error }
            $handler.Error | Should -Match 'ends at offset 131072 of an image that is 65536 bytes long'
            $handler.ConnectionCount | Should -Be 0
            $region | Remove-MmapRegion
            Test-GoodVm $handler $content | Should -BeTrue
            Wait-Until { (Get-DescriptorCount) -le $descriptors }
        }
    }

    Context 'Bad peers with descriptors' {
        BeforeAll {
            $script = "$TestDrive/peer.py"
            $source = @'
import array, fcntl, json, mmap, os, socket, sys

path, what = sys.argv[1:]


def userfaultfd():
    device = os.open('/dev/userfaultfd', os.O_RDWR | os.O_CLOEXEC)
    number = fcntl.ioctl(device, 0xAA00, os.O_CLOEXEC | os.O_NONBLOCK)
    # UFFDIO_API: version 0xAA, no features.
    fcntl.ioctl(number, 0xC018AA3F, array.array('Q', [0xAA, 0, 0]), True)
    return number


def mapping(base, size=65536, offset=0, page_size=4096):
    return {'base_host_virt_addr': base, 'size': size, 'offset': offset, 'page_size': page_size}


BASE = 0x7F0000000000
LISTS = {
    'past': [mapping(BASE, offset=4096)],
    'far': [mapping(BASE, offset=2**64 - 4096)],
    'wraps': [mapping(2**64 - 4096)],
    'overlap': [mapping(BASE), mapping(BASE + 0x8000)],
    'empty': [],
    'nothing': [mapping(BASE, size=0)],
    'unaligned': [mapping(BASE + 100)],
    'odd': [mapping(BASE, page_size=3000)],
}
text = json.dumps(LISTS.get(what, [mapping(BASE)])).encode()
peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
peer.connect(path)
files = [os.open('/dev/null', os.O_RDONLY) for _ in range(20)]
if what == 'two':
    socket.send_fds(peer, [text], files[:2])
elif what == 'twenty':
    socket.send_fds(peer, [text], files)
elif what == 'wrong':
    socket.send_fds(peer, [text], files[:1])
elif what in ('dies', 'hangs'):
    socket.send_fds(peer, [text[:10]], [userfaultfd()])
elif what == 'leaves':
    socket.send_fds(peer, [text], [userfaultfd()])
    sys.stdin.readline()
    os._exit(0)
else:
    socket.send_fds(peer, [text], [userfaultfd()])
if what != 'dies':
    peer.recv(1)
'@
        }

        BeforeEach {
            Skip-UnlessSupported $userfaultfd
            if (-not $python) {
                Set-ItResult -Skipped -Because 'needs python3: apt-get install python3'
            }
            if (-not (Test-GuestMemorySupport DevUserfaultfd).Supported) {
                Set-ItResult -Skipped -Because 'the peer makes its userfaultfd from /dev/userfaultfd, which cannot be opened'
            }
            Set-Content $script $source
            $handler = Start-UffdHandler $path $image
            Test-GoodVm $handler $content | Should -BeTrue
            Wait-Until { $handler.ConnectionCount -eq 0 -and $handler.State -eq 'Listening' }
            $descriptors = Get-DescriptorCount
        }

        It 'outlives a peer that sends <Sends>' -ForEach @(
            @{ Sends = 'two descriptors'; What = 'two'; Expected = 'first descriptor that came with the hand-over is not a userfaultfd' }
            @{ Sends = 'twenty descriptors'; What = 'twenty'; Expected = 'with 16 descriptors or more' }
            @{ Sends = 'a descriptor of something else'; What = 'wrong'; Expected = 'is not a userfaultfd' }
            @{ Sends = 'a mapping past the end of the image'; What = 'past'; Expected = 'ends at offset 69632 of an image that is 65536 bytes long' }
            @{ Sends = 'a mapping far past the end of the image'; What = 'far'; Expected = 'of an image that is 65536 bytes long' }
            @{ Sends = 'a mapping that passes 2^64'; What = 'wraps'; Expected = 'passes the last address' }
            @{ Sends = 'mappings that overlap'; What = 'overlap'; Expected = 'overlap in the VMM' }
            @{ Sends = 'no mapping'; What = 'empty'; Expected = 'is empty' }
            @{ Sends = 'a mapping of no bytes'; What = 'nothing'; Expected = 'has no bytes' }
            @{ Sends = 'a mapping within a page'; What = 'unaligned'; Expected = 'not aligned' }
            @{ Sends = 'a page size that is none'; What = 'odd'; Expected = 'not a power of two' }
            @{ Sends = 'a descriptor and hangs in the middle of its JSON'; What = 'hangs'; Expected = 'did not hand its memory over within 5 s' }
            @{ Sends = 'a descriptor and dies in the middle of its JSON'; What = 'dies'; Expected = 'in the middle of the hand-over, after 10 bytes and 1 descriptors' }
        ) {
            & $python $script $path $What
            $LASTEXITCODE | Should -Be 0
            Wait-Until { $handler.Error }
            $handler.Error | Should -Match $Expected
            $handler.ConnectionCount | Should -Be 0
            $handler.State | Should -Be Listening
            Test-GoodVm $handler $content | Should -BeTrue
            Wait-Until { (Get-DescriptorCount) -le $descriptors }
        }

        It 'lets a VM go that dies after its hand-over' {
            $start = [Diagnostics.ProcessStartInfo]::new($python.Source, [string[]] ($script, $path, 'leaves'))
            $start.RedirectStandardInput = $true
            $vm = [Diagnostics.Process]::Start($start)
            try {
                Wait-Until { $handler.ConnectionCount -eq 1 }
                $handler.State | Should -Be Serving
            }
            finally {
                $vm.Kill()
                $vm.WaitForExit()
                $vm.Dispose()
            }
            Wait-Until { $handler.ConnectionCount -eq 0 }
            $handler.Error | Should -BeNullOrEmpty
            Test-GoodVm $handler $content | Should -BeTrue
            Wait-Until { $handler.State -eq 'Listening' -and (Get-DescriptorCount) -le $descriptors }
        }
    }

    Context '-Wait' {
        BeforeEach {
            $shell = [powershell]::Create()
            $null = $shell.AddScript({
                param($Manifest, $SocketPath, $MemoryPath)
                Import-Module $Manifest
                Start-UffdHandler $SocketPath $MemoryPath -InProcess -Wait
            }).AddArgument($manifest).AddArgument($path).AddArgument($image)
            $running = $shell.BeginInvoke()
            Wait-Until { Get-UffdHandler }
        }

        AfterEach {
            $shell.Stop()
            $shell.Dispose()
        }

        It 'serves until Ctrl+C, and leaves no socket' {
            $handler = Get-UffdHandler
            $path | Should -Exist
            $running.IsCompleted | Should -BeFalse
            $stopping = $shell.BeginStop($null, $null)
            $stopping.AsyncWaitHandle.WaitOne([timespan]::FromSeconds(60)) | Should -BeTrue
            $shell.InvocationStateInfo.State | Should -Be Stopped
            $handler.State | Should -Be Stopped
            $path | Should -Not -Exist
            Get-UffdHandler | Should -BeNullOrEmpty
        }

        It 'ends when somebody stops the handler, and gives it with its last figures' {
            Get-UffdHandler | Stop-UffdHandler
            $running.AsyncWaitHandle.WaitOne([timespan]::FromSeconds(60)) | Should -BeTrue
            $result = $shell.EndInvoke($running)
            $result[0].State | Should -Be Stopped
            $result[0].SocketPath | Should -Be $path
            $shell.HadErrors | Should -BeFalse
            $path | Should -Not -Exist
        }
    }

    Context 'Removing the module' {
        It 'warns about a live handler and stops it' {
            $text = "Import-Module '$manifest'; `$handler = Start-UffdHandler '$path' '$image' -InProcess; Remove-Module GuestMemory; " +
                "`"state=`$(`$handler.State) socket=`$(Test-Path '$path')`""
            $output = & $pwsh[0] $pwsh[1..9] -NoProfile -NonInteractive -Command $text 2>&1 | Out-String
            $LASTEXITCODE | Should -Be 0
            $output | Should -Match 'WARNING: GuestMemory: 1 page-fault handler'
            $output | Should -Match ([regex]::Escape($path))
            $output | Should -Match 'state=Stopped socket=False'
        }

        It 'says nothing where no handler lives' {
            $text = "Import-Module '$manifest'; Start-UffdHandler '$path' '$image' -InProcess | Stop-UffdHandler; `$null = New-MmapRegion 4KiB; Remove-Module GuestMemory; 'done'"
            $output = & $pwsh[0] $pwsh[1..9] -NoProfile -NonInteractive -Command $text 2>&1 | Out-String
            $output.Trim() | Should -BeExactly done
        }

        It 'takes the socket away also where the shell just exits' {
            $text = "Import-Module '$manifest'; `$null = Start-UffdHandler '$path' '$image' -InProcess; exit 7"
            $null = & $pwsh[0] $pwsh[1..9] -NoProfile -NonInteractive -Command $text 2>&1
            $LASTEXITCODE | Should -Be 7
            $path | Should -Not -Exist
        }
    }

    It 'starts nothing with -WhatIf' {
        Start-UffdHandler $path $image -WhatIf | Should -BeNullOrEmpty
        Get-UffdHandler | Should -BeNullOrEmpty
        $path | Should -Not -Exist
    }

    Context 'Strategies and sources' {
        BeforeEach {
            Skip-UnlessSupported $userfaultfd
            $read = { param($Handler) $vm = New-MmapRegion 64KiB 0x7000000000; $vm | Connect-UffdHandler $Handler.SocketPath; $vm | Read-GuestMemory 0x7000000000 64KiB -Raw; $vm | Remove-MmapRegion -Force }
        }

        It 'serves the image with -Strategy <_>' -ForEach 'OnDemand', 'Background', 'FaultAll', 'Window' {
            $handler = Start-UffdHandler $path $image -Strategy $_ -WindowSize 32KiB
            $handler.Strategy | Should -Be $_
            [Convert]::ToHexString((& $read $handler)) | Should -BeExactly ([Convert]::ToHexString($content))
        }

        It 'records what is touched and replays it' {
            $handler = Start-UffdHandler $path $image -RecordPath "$TestDrive/touches"
            $handler.Strategy | Should -Be OnDemand
            $null = & $read $handler
            $handler | Stop-UffdHandler
            $handler = Start-UffdHandler $path $image -Strategy Replay -ReplayPath "$TestDrive/touches"
            [Convert]::ToHexString((& $read $handler)) | Should -BeExactly ([Convert]::ToHexString($content))
            $handler.FaultCount | Should -BeLessThan 16
            { Start-UffdHandler "$TestDrive/2.sock" $image -Strategy Replay -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*'
            { Start-UffdHandler "$TestDrive/2.sock" $image -Strategy Window -RecordPath "$TestDrive/other" -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*'
            { Start-UffdHandler "$TestDrive/2.sock" $image -ReplayPath "$TestDrive/none" -ErrorAction Stop } | Should -Throw -ErrorId 'RecordNotFound,*'
            { Start-UffdHandler "$TestDrive/2.sock" $image -ReplayPath $image -ErrorAction Stop } | Should -Throw -ErrorId 'InvalidRecord,*'
        }

        It 'records what is touched before the background has brought it' {
            $handler = Start-UffdHandler $path $image -Strategy Background -RecordPath "$TestDrive/beside" -FillRate 1
            $vm = New-MmapRegion 64KiB 0x7000000000
            $vm | Connect-UffdHandler $path
            $null = $vm | Read-GuestMemory 0x7000009000 1 -Raw
            $null = $vm | Read-GuestMemory 0x700000C000 1 -Raw
            $vm | Remove-MmapRegion -Force
            $handler | Stop-UffdHandler
            $record = Merge-UffdRecord "$TestDrive/beside" "$TestDrive/merged" -PassThru
            $record.PageCount | Should -Be 2
        }

        It 'puts layers over the image' {
            $layer = [byte[]]::new(4096)
            [Array]::Fill($layer, [byte] 7)
            $file = [IO.File]::Create("$TestDrive/layer")
            $file.SetLength(64KB)
            $file.Position = 0x3000
            $file.Write($layer)
            $file.Dispose()
            $bytes = & $read (Start-UffdHandler $path $image -Layer "$TestDrive/layer")
            $bytes[0x3000] | Should -Be 7
            $bytes[0x2FFF] | Should -Be $content[0x2FFF]
            $bytes[0x4000] | Should -Be $content[0x4000]
        }

        It 'serves metrics at a port and at a socket' {
            $handler = Start-UffdHandler $path $image -MetricsPort 0
            $null = & $read $handler
            $text = Invoke-RestMethod "http://127.0.0.1:$($handler.MetricsPort)/metrics"
            $text | Should -Match 'guestmemory_uffd_faults_total'
            $text | Should -Match '# EOF'
            $null = Start-UffdHandler "$TestDrive/2.sock" $image -MetricsPath "$TestDrive/metrics.sock"
            "$TestDrive/metrics.sock" | Should -Exist
            Get-UffdHandler | Stop-UffdHandler
            "$TestDrive/metrics.sock" | Should -Not -Exist
        }

        It 'turns away who comes when -MaxConnections are there' {
            $handler = Start-UffdHandler $path $image -MaxConnections 1
            $first = New-MmapRegion 64KiB
            $first | Connect-UffdHandler $path
            Wait-Until { $handler.ConnectionCount -eq 1 }
            $second = New-MmapRegion 64KiB 0x100000
            $second | Connect-UffdHandler $path -ErrorAction SilentlyContinue
            Wait-Until { $handler.Error }
            $handler.Error | Should -Match 'was refused: 1 VMMs are connected, which is the limit'
            ($first | Read-GuestMemory 0 16).Bytes | Should -Be $content[0..15]
        }

        It 'fills no more than -MemoryLimit, says so in State, and serves faults' {
            $handler = Start-UffdHandler $path $image -MemoryLimit 16KiB
            $vm = New-MmapRegion 64KiB
            $vm | Connect-UffdHandler $path
            Wait-Until { $handler.State -eq 'Limited' }
            $handler.ByteCount | Should -Be 16KB
            $handler | Wait-UffdHandler -Until Serving -Timeout 10 | Should -Be $handler
            [Convert]::ToHexString(($vm | Read-GuestMemory 0 64KiB -Raw)) | Should -BeExactly ([Convert]::ToHexString($content))
            Wait-Until { $handler.State -eq 'Serving' }
        }

        It 'fills no faster than -FillRate, and serves faults' {
            $handler = Start-UffdHandler $path $image -FillRate 1 -NoReadAhead
            $vm = New-MmapRegion 64KiB
            $vm | Connect-UffdHandler $path
            Wait-Until { $handler.ByteCount -gt 0 }
            $handler.GetFigures().FillByteCount | Should -Be 4KB
            [Convert]::ToHexString(($vm | Read-GuestMemory 0 64KiB -Raw)) | Should -BeExactly ([Convert]::ToHexString($content))
            $handler.GetFigures().FillByteCount | Should -Be 4KB
            { Start-UffdHandler "$TestDrive/2.sock" $image -Strategy OnDemand -FillRate 1MiB -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*'
        }
    }

    It 'completes strategies' {
        Get-Completion 'Start-UffdHandler -Strategy On' | Should -Be OnDemand
    }

    It 'says what it gives' {
        (Get-Command Start-UffdHandler).OutputType.Type | Should -Be ([GuestMemory.Core.Userfault.UffdHandler], [string])
    }
}
