BeforeAll {
    $manifest = (Resolve-Path "$PSScriptRoot/../../GuestMemory.psd1").Path
    Import-Module $manifest
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $kvm = Test-GuestMemorySupport Kvm
    $pwsh = @(Get-PowerShellCommand)

    function Get-LeftTime([scriptblock] $Script, [object[]] $Arguments) {
        # How long a shell that runs the script takes to stop.
        $shell = [powershell]::Create()
        try {
            $null = $shell.AddScript("param(`$manifest, `$first) Import-Module `$manifest; $Script").AddArgument($manifest)
            foreach ($argument in $Arguments) {
                $null = $shell.AddArgument($argument)
            }
            $null = $shell.BeginInvoke()
            Start-Sleep -Milliseconds 1500
            $shell.InvocationStateInfo.State | Should -Be Running
            $watch = [Diagnostics.Stopwatch]::StartNew()
            $shell.Stop()
            $watch.Elapsed
        }
        finally {
            $shell.Dispose()
        }
    }
}

Describe 'Invoke-VmMemoryRequest' {
    BeforeEach {
        if ($kvm.Supported) {
            $ram = New-MmapRegion 1MiB -Name ram
            $vm = $ram | New-GuestVm web
            $memfd = New-MmapRegion 64KiB 0x100000000 -Memfd -Name memfd
            [IO.File]::WriteAllBytes("$TestDrive/file", [byte[]](, 7 * 12KB))
            $socket = "$TestDrive/vm.sock"
        }
    }

    AfterEach {
        Clear-TestState
    }

    Context 'on a VM' {
        It 'registers memory, which the guest writes and the host reads, and takes it out again' {
            Skip-UnlessSupported $kvm
            $response = $memfd | Invoke-VmMemoryRequest -RegisterMemory -Vm $vm -Destination 0x200000
            $response | Should -BeOfType GuestMemory.Core.VmControl.VmMemoryResponse
            $response.RegionId | Should -Be 0x200000
            $response.Slot | Should -Be 1
            $vm.Slots[1].GuestAddress | Should -Be 0x200000
            # mov byte [0x200000], 0x2a; hlt
            $ram | Write-GuestMemory 0x1000 -Bytes 0xC6, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, 0x2A, 0xF4
            if ([Runtime.InteropServices.RuntimeInformation]::ProcessArchitecture -eq 'X64') {
                $vcpu = $vm.GetKvmVm().CreateVcpu()
                $vcpu.SetLongMode(0x1000ul, 0x8000ul, 0, 4)
                $vcpu.Run().Reason | Should -Be Hlt
                $memfd | Read-GuestMemory 0x100000000 -As Byte -Count 1 | Should -Be 42
            }
            $response | Invoke-VmMemoryRequest -UnregisterMemory -Vm web | Should -BeOfType 'GuestMemory.Core.VmControl.VmMemoryResponse+Ok'
            $vm.Slots.Count | Should -Be 1
        }

        It 'registers memory read-only, of a file, and anonymous memory' {
            Skip-UnlessSupported $kvm
            $null = Invoke-VmMemoryRequest -RegisterMemory -Source "$TestDrive/file" -Protection Read -Destination 4GiB -Vm $vm
            $null = New-MmapRegion 64KiB 0x200000000 -Name lent | Invoke-VmMemoryRequest -RegisterMemory -Vm $vm
            $vm.Slots.ReadOnly | Should -Be $false, $true, $false
            $vm.Slots.Size | Should -Be 1MB, 12KB, 64KB
            # What the VM has stays mapped for it.
            Remove-MmapRegion lent
            $null = Invoke-VmMemoryRequest -UnregisterMemory -RegionId 0x200000000 -Vm $vm -ErrorAction Stop
        }

        It 'refuses an offset that passes the end of all files' {
            Skip-UnlessSupported $kvm
            $part = New-MmapRegion 4KiB 0x500000000 -BackingPath "$TestDrive/file" -FileOffset 4096
            { Invoke-VmMemoryRequest -RegisterMemory -Source $part -Offset 0xFFFFFFFFFFFFF000 -Size 4096 -Vm $vm -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*' -ExpectedMessage '*past*'
            $vm.Slots.Count | Should -Be 1
        }

        It 'maps files over shared memory' {
            Skip-UnlessSupported $kvm
            $response = $memfd | Invoke-VmMemoryRequest -MmapAndRegisterMemory -Vm $vm -Destination 8GiB -FileMapping @{ File = "$TestDrive/file"; MemOffset = '16KiB'; Length = '4KiB' }
            $response.RegionId | Should -Be 8GB
            $vm.Slots[-1].ReadOnly | Should -BeTrue
        }

        It 'prepares a register, and registers memory in it' {
            Skip-UnlessSupported $kvm
            $start = $vm.AllocateMmio(1MB, 'PciBar:00:03.0/2')
            $start | Should -Be 3GB
            $null = Invoke-VmMemoryRequest -PrepareSharedMemoryRegion -Alloc PciBar:00:03.0/2 -Vm $vm -ErrorAction Stop
            $response = Invoke-VmMemoryRequest -RegisterMemory -Source $memfd -Destination PciBar:00:03.0/2+64KiB -Vm $vm
            $response.RegionId | Should -Be (3GB + 64KB)
            Get-Completion 'Invoke-VmMemoryRequest -PrepareSharedMemoryRegion -Alloc PciBar:00:03' | Should -Be 'PciBar:00:03.0/2'
            Get-Completion 'Invoke-VmMemoryRequest -UnregisterMemory -RegionId ' | Should -Be '0xc0010000'
        }

        It 'frees and reclaims memory, and says that the balloon has its size' {
            Skip-UnlessSupported $kvm
            $ram | Write-GuestMemory 0x3000 ([byte]9)
            $vm | Invoke-VmMemoryRequest -DynamicallyFreeMemoryRanges -Range 0x3000+4KiB | Should -BeOfType 'GuestMemory.Core.VmControl.VmMemoryResponse+Ok'
            $ram | Read-GuestMemory 0x3000 -As Byte -Count 1 | Should -Be 0
            $vm | Invoke-VmMemoryRequest -DynamicallyReclaimMemoryRanges -Range 0x3000+4KiB | Should -BeOfType 'GuestMemory.Core.VmControl.VmMemoryResponse+Ok'
            $vm | Invoke-VmMemoryRequest -BalloonTargetReached -Size 4KiB | Should -BeOfType 'GuestMemory.Core.VmControl.VmMemoryResponse+Ok'
        }

        It 'has stores signal an eventfd, and ends that' {
            Skip-UnlessSupported $kvm
            $ioEvent = [GuestMemory.Core.Kvm.IoEvent]::new()
            try {
                $null = Invoke-VmMemoryRequest -IoEventRaw -Event $ioEvent -Address 0xd0000000 -Datamatch U32:5 -Vm $vm -ErrorAction Stop
                $failure = { Invoke-VmMemoryRequest -IoEventRaw -Event $ioEvent -Address 0xd0000000 -Datamatch U32:5 -Vm $vm -ErrorAction Stop } | Should -Throw -ErrorId 'RequestFailed,*' -PassThru
                $failure.Exception.Message | Should -Be 'failed to register IO event: File exists (os error 17)'
                $null = Invoke-VmMemoryRequest -IoEventRaw -Event $ioEvent -Address 0xd0000000 -Datamatch U32:5 -Register:$false -Vm $vm -ErrorAction Stop
            }
            finally {
                $ioEvent.Dispose()
            }
        }

        It 'gives the answer and an error record with the whole chain where a request fails' {
            Skip-UnlessSupported $kvm
            $response = Invoke-VmMemoryRequest -RegisterMemory -Source $memfd -Destination 0x1000 -Vm $vm -ErrorAction SilentlyContinue -ErrorVariable failure
            $response.Messages | Should -Be 'No space left on device (os error 28)', 'failed to add memory region when registering memory'
            $failure.Count | Should -Be 1
            $failure[0].FullyQualifiedErrorId | Should -Be 'RequestFailed,GuestMemory.PowerShell.Commands.InvokeVmMemoryRequestCommand'
            $failure[0].CategoryInfo.Category | Should -Be InvalidResult
            $failure[0].Exception.Message | Should -Be 'failed to add memory region when registering memory: No space left on device (os error 28)'
            $failure[0].Exception.InnerException.Message | Should -Be 'No space left on device (os error 28)'
            $failure[0].TargetObject | Should -BeOfType 'GuestMemory.Core.VmControl.VmMemoryRequest+RegisterMemory'
            $failure[0].ErrorDetails.Message | Should -Be $failure[0].Exception.Message
            $failure[0].ErrorDetails.RecommendedAction | Should -BeLike 'Base memory of the VM lies there.*'
            $null = Invoke-VmMemoryRequest -RegisterMemory -Source $memfd -Destination 0x200001 -Vm $vm -ErrorAction SilentlyContinue -ErrorVariable failure
            $failure[0].ErrorDetails.RecommendedAction | Should -BeLike '*multiples of the page size*'
            $null = Invoke-VmMemoryRequest -UnregisterMemory -RegionId 1 -Vm $vm -ErrorAction SilentlyContinue -ErrorVariable failure
            $failure[0].ErrorDetails.RecommendedAction | Should -BeLike '*RegionId*'
            $response | Out-String -Width 200 | Should -Match 'Err\s+failed to add memory region when registering memory: No space'
        }

        It 'says that a VM is gone' {
            Skip-UnlessSupported $kvm
            $vm | Remove-GuestVm
            $failure = { Invoke-VmMemoryRequest -BalloonTargetReached -Size 1 -Vm $vm -ErrorAction Stop } | Should -Throw -ErrorId 'VmDisposed,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be InvalidOperation
            { Invoke-VmMemoryRequest -BalloonTargetReached -Size 1 -Vm web } | Should -Throw -ErrorId 'ParameterArgumentTransformationError,*' -ExpectedMessage "*There is no VM 'web'*"
        }

        It 'wants a VM or a socket, and not both' {
            Skip-UnlessSupported $kvm
            { Invoke-VmMemoryRequest -BalloonTargetReached -Size 1 } | Should -Throw -ErrorId 'ValueNotSupported,*'
            { Invoke-VmMemoryRequest -BalloonTargetReached -Size 1 -Vm $vm -SocketPath $socket } | Should -Throw -ErrorId 'ValueNotSupported,*'
        }

        It 'does nothing with -WhatIf' {
            Skip-UnlessSupported $kvm
            $memfd | Invoke-VmMemoryRequest -RegisterMemory -Vm $vm -WhatIf | Should -BeNullOrEmpty
            $vm.Slots.Count | Should -Be 1
        }

        It 'completes VMs' {
            Skip-UnlessSupported $kvm
            Get-Completion 'Invoke-VmMemoryRequest -Vm w' | Should -Be web
        }
    }

    Context 'requests from the pipeline' {
        It 'goes on after one that fails' {
            Skip-UnlessSupported $kvm
            $responses = '{"UnregisterMemory":5}', '{"Bogus":1}', 'text', (New-VmMemoryRequest -BalloonTargetReached -Size 1), '{"BalloonTargetReached":{"size":1}}' |
                Invoke-VmMemoryRequest -Vm $vm -ErrorAction SilentlyContinue -ErrorVariable failures
            $responses.ForEach{ $_.GetType().Name } | Should -Be Err, Ok, Ok
            $responses.Response | Should -Be Err, Ok, Ok
            ($responses[1] | Out-String).Trim() | Should -BeExactly Ok
            $failures.ForEach{ ($_.FullyQualifiedErrorId -split ',')[0] } | Should -Be RequestFailed, BadJson, BadJson
        }

        It 'takes what ConvertFrom-Json makes, also as a hashtable, and arrays' {
            Skip-UnlessSupported $kvm
            $requests = (New-VmMemoryRequest -BalloonTargetReached -Size 18446744073709551615), (New-VmMemoryRequest -DynamicallyFreeMemoryRanges -Range 0x1000+4KiB, 0x3000+4KiB)
            $json = $requests | ConvertTo-Json -Depth 10
            @($json | Invoke-VmMemoryRequest -Vm $vm -ErrorAction Stop).Count | Should -Be 2
            @($json | ConvertFrom-Json | Invoke-VmMemoryRequest -Vm $vm -ErrorAction Stop).Count | Should -Be 2
            @($json | ConvertFrom-Json -AsHashtable | Invoke-VmMemoryRequest -Vm $vm -ErrorAction Stop).Count | Should -Be 2
            Invoke-VmMemoryRequest $requests[0] -Vm $vm -ErrorAction Stop | Should -BeOfType 'GuestMemory.Core.VmControl.VmMemoryResponse+Ok'
            Invoke-VmMemoryRequest @{ BalloonTargetReached = @{ size = [Math]::Pow(2, 32) } } -Vm $vm -ErrorAction Stop | Should -BeOfType 'GuestMemory.Core.VmControl.VmMemoryResponse+Ok'
        }

        It 'takes the open files of JSON from -Descriptor, and file mappings from -FileMapping' {
            Skip-UnlessSupported $kvm
            $json = $memfd | New-VmMemoryRequest -RegisterMemory | ConvertTo-Json -Depth 10
            ($json | Invoke-VmMemoryRequest -Vm $vm -Descriptor $memfd).RegionId | Should -Be 0x100000000
            ($json | ConvertFrom-Json | Invoke-VmMemoryRequest -Vm $vm -Descriptor $memfd -ErrorAction SilentlyContinue).Messages[0] | Should -Match 'exists|space' -Because 'it is there already'
            { $json | Invoke-VmMemoryRequest -Vm $vm -ErrorAction Stop } | Should -Throw -ErrorId 'BadJson,*' -ExpectedMessage '*-Descriptor*'
            $json = $memfd | New-VmMemoryRequest -MmapAndRegisterMemory -Destination 8GiB -FileMapping @{ File = "$TestDrive/file" } -AsJson
            ($json | Invoke-VmMemoryRequest -Vm $vm -Descriptor $memfd -FileMapping @{ File = "$TestDrive/file" }).RegionId | Should -Be 8GB
        }

        It 'refuses an empty list, and what is no number' {
            Skip-UnlessSupported $kvm
            { '[]' | Invoke-VmMemoryRequest -Vm $vm -ErrorAction Stop } | Should -Throw -ErrorId 'BadJson,*' -ExpectedMessage '*empty list*'
            { Invoke-VmMemoryRequest @{ UnregisterMemory = [double]::NaN } -Vm $vm -ErrorAction Stop } | Should -Throw -ErrorId 'BadJson,*'
        }

        It 'says what helps where ConvertTo-Json has cut a request short' {
            Skip-UnlessSupported $kvm
            $json = $memfd | New-VmMemoryRequest -RegisterMemory | ConvertTo-Json -WarningAction Ignore
            { $json | Invoke-VmMemoryRequest -Vm $vm -ErrorAction Stop } | Should -Throw -ErrorId 'BadJson,*' -ExpectedMessage '*-Depth 10*'
        }
    }

    Context 'through a socket' {
        It 'sends descriptors along, from another process' {
            Skip-UnlessSupported $kvm
            $null = $vm | Start-VmMemoryService $socket
            $script = {
                param($Manifest, $Socket)
                $ErrorActionPreference = 'Stop'
                Import-Module $Manifest
                $region = New-MmapRegion 64KiB 0x300000000 -Memfd
                $region | Write-GuestMemory 0x300000000 ([byte]77)
                $region | Invoke-VmMemoryRequest -RegisterMemory -SocketPath $Socket
                $region | Invoke-VmMemoryRequest -MmapAndRegisterMemory -Destination 0x400000000 -SocketPath $Socket -FileMapping (, @{ File = $region; MemOffset = '8KiB'; Length = '4KiB' } * 300)
                (New-VmMemoryRequest -BalloonTargetReached -Size 1), '{"UnregisterMemory":1}' | Invoke-VmMemoryRequest -SocketPath $Socket -ErrorAction SilentlyContinue
                'done'
            }
            $file = "$TestDrive/client.ps1"
            Set-Content $file $script.ToString()
            $arguments = @($pwsh | Select-Object -Skip 1) + '-NoProfile', '-File', $file, $manifest, $socket
            $output = & $pwsh[0] @arguments
            $output | Should -Contain done -Because ($output | Out-String)
            $vm.Slots.GuestAddress | Should -Be 0, 0x300000000, 0x400000000
            # The memory outlives the process that brought it.
            $buffer = [byte[]]::new(1)
            $ends = $vm.Slots[1].GetSlotMemory().Memory.AsVolatileSlice()
            $null = $ends.Read(0, $buffer)
            $buffer[0] | Should -Be 77
            $service = Get-VmMemoryService
            $service.RequestCount | Should -Be 4
            $service.ErrorCount | Should -Be 1
        }

        It 'takes a service from the pipeline' {
            Skip-UnlessSupported $kvm
            $vm | Start-VmMemoryService $socket | Invoke-VmMemoryRequest -BalloonTargetReached -Size 1 | Should -BeOfType 'GuestMemory.Core.VmControl.VmMemoryResponse+Ok'
        }

        It 'asks the service of each object from the pipeline' {
            Skip-UnlessSupported $kvm
            $other = New-MmapRegion 1MiB -Name ram2 | New-GuestVm other
            $services = @($vm | Start-VmMemoryService $socket) + @($other | Start-VmMemoryService "$TestDrive/other.sock")
            $services | Invoke-VmMemoryRequest -BalloonTargetReached -Size 1 | Should -HaveCount 2
            $services.RequestCount | Should -Be 1, 1
        }

        It 'refuses anonymous memory, and says what helps' {
            Skip-UnlessSupported $kvm
            $null = $vm | Start-VmMemoryService $socket
            $lent = New-MmapRegion 64KiB 0x200000000
            { $lent | Invoke-VmMemoryRequest -RegisterMemory -SocketPath $socket -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*' -ExpectedMessage '*-Memfd*'
            $response = $lent | Invoke-VmMemoryRequest -RegisterMemory -SourceType ExternalMapping -SocketPath $socket -ErrorAction SilentlyContinue
            $response.Messages | Should -Be 'Operation not permitted (os error 1)'
        }

        It 'says that there is no socket, or nobody behind it' {
            Skip-UnlessSupported $kvm
            $failure = { Invoke-VmMemoryRequest -BalloonTargetReached -Size 1 -SocketPath "$TestDrive/none.sock" -ErrorAction Stop } | Should -Throw -ErrorId 'SocketNotFound,*' -PassThru
            $failure.CategoryInfo.Category | Should -Be ObjectNotFound
            { Invoke-VmMemoryRequest -BalloonTargetReached -Size 1 -SocketPath "$TestDrive/file" -ErrorAction Stop } | Should -Throw -ErrorId 'NotASocket,*'
            { Invoke-VmMemoryRequest -BalloonTargetReached -Size 1 -SocketPath ('/tmp/' + 'x' * 200) -ErrorAction Stop } | Should -Throw -ErrorId 'SocketPathTooLong,*'
        }

        It 'waits no longer than was said' {
            Skip-UnlessSupported $kvm
            $listener = [Net.Sockets.Socket]::new('Unix', 'Seqpacket', 'Unspecified')
            try {
                $listener.Bind([Net.Sockets.UnixDomainSocketEndPoint]::new($socket))
                $listener.Listen(5)
                $failure = { Invoke-VmMemoryRequest -BalloonTargetReached -Size 1 -SocketPath $socket -Timeout 0.2 -ErrorAction Stop } | Should -Throw -ErrorId 'TubeTimeout,*' -PassThru
                $failure.CategoryInfo.Category | Should -Be OperationTimeout
            }
            finally {
                $listener.Dispose()
            }
        }

        It 'says that the service was stopped while it waited' {
            Skip-UnlessSupported $kvm
            $service = $vm | Start-VmMemoryService $socket
            # Whoever holds the VM's lock keeps its requests waiting.
            $vm.GetContext().Lock.Enter()
            $shell = [powershell]::Create()
            try {
                $null = $shell.AddScript('param($Manifest, $Socket) Import-Module $Manifest; Invoke-VmMemoryRequest -BalloonTargetReached -Size 1 -SocketPath $Socket').AddArgument($manifest).AddArgument($socket)
                $running = $shell.BeginInvoke()
                Wait-Until { $service.ConnectionCount -eq 1 }
                $service | Stop-VmMemoryService
                $shell.EndInvoke($running) | Should -BeNullOrEmpty
                $shell.Streams.Error[0].FullyQualifiedErrorId | Should -BeLike 'Disconnected,*'
                $shell.Streams.Error[0].CategoryInfo.Category | Should -Be ConnectionError
            }
            finally {
                $vm.GetContext().Lock.Exit()
                $shell.Dispose()
            }
        }

        It 'leaves no descriptor' {
            Skip-UnlessSupported $kvm
            $null = $vm | Start-VmMemoryService $socket
            $work = {
                $memfd | Invoke-VmMemoryRequest -RegisterMemory -SocketPath $socket | Invoke-VmMemoryRequest -UnregisterMemory -SocketPath $socket
                Invoke-VmMemoryRequest -RegisterMemory -Source "$TestDrive/file" -Destination 4GiB -Vm $vm | Invoke-VmMemoryRequest -UnregisterMemory -Vm $vm
                Invoke-VmMemoryRequest -RegisterMemory -Source "$TestDrive/file" -Destination 1 -Vm $vm -ErrorAction SilentlyContinue
            }
            $null = & $work
            Wait-Until { (Get-VmMemoryService).ConnectionCount -eq 0 }
            $before = Get-DescriptorCount
            1..10 | ForEach-Object { $null = & $work }
            Wait-Until { (Get-VmMemoryService).ConnectionCount -eq 0 }
            Get-DescriptorCount | Should -Be $before
            $vm.Slots.Count | Should -Be 1
        }
    }

    Context 'Ctrl+C' {
        It 'leaves a service that does not answer' {
            Skip-UnlessSupported $kvm
            $listener = [Net.Sockets.Socket]::new('Unix', 'Seqpacket', 'Unspecified')
            try {
                $listener.Bind([Net.Sockets.UnixDomainSocketEndPoint]::new($socket))
                $listener.Listen(5)
                # Time is not asserted closely: the host may be busy.
                Get-LeftTime { Invoke-VmMemoryRequest -BalloonTargetReached -Size 1 -SocketPath $first } $socket | Should -BeLessThan ([timespan]::FromSeconds(2))
            }
            finally {
                $listener.Dispose()
            }
        }

        It 'leaves a VM that is busy' {
            Skip-UnlessSupported $kvm
            $vm.GetContext().Lock.Enter()
            try {
                Get-LeftTime { Invoke-VmMemoryRequest -BalloonTargetReached -Size 1 -Vm $first } $vm | Should -BeLessThan ([timespan]::FromSeconds(2))
            }
            finally {
                $vm.GetContext().Lock.Exit()
            }
            Invoke-VmMemoryRequest -BalloonTargetReached -Size 1 -Vm $vm | Should -BeOfType 'GuestMemory.Core.VmControl.VmMemoryResponse+Ok'
        }
    }
}
