BeforeAll {
    $manifest = (Resolve-Path "$PSScriptRoot/../../GuestMemory.psd1").Path
    Import-Module $manifest
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $kvm = Test-GuestMemorySupport Kvm
    $pwsh = @(Get-PowerShellCommand)
}

Describe 'Start-VmMemoryService' {
    BeforeEach {
        $socket = "$TestDrive/vm.sock"
        if ($kvm.Supported) {
            $vm = New-MmapRegion 1MiB | New-GuestVm web
        }
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'listens, for this user alone' {
        Skip-UnlessSupported $kvm
        $service = $vm | Start-VmMemoryService $socket
        $service | Should -BeOfType GuestMemory.Core.VmControl.VmMemoryService
        $service.State | Should -Be Running
        $service.SocketPath | Should -Be $socket
        [IO.File]::GetUnixFileMode($socket) | Should -Be 'UserWrite, UserRead'
        Invoke-VmMemoryRequest -BalloonTargetReached -Size 1 -SocketPath $socket | Should -BeOfType 'GuestMemory.Core.VmControl.VmMemoryResponse+Ok'
        $service.RequestCount | Should -Be 1
    }

    It 'takes a VM by its name, and a path of the session' {
        Skip-UnlessSupported $kvm
        Push-Location $TestDrive
        try {
            (Start-VmMemoryService vm.sock -Vm WEB).SocketPath | Should -Be $socket
        }
        finally {
            Pop-Location
        }
        Get-Completion 'Start-VmMemoryService vm.sock -Vm w' | Should -Be web
    }

    It 'refuses <What> with <Id>' -ForEach @(
        @{ What = 'a path where one listens'; Id = 'SocketInUse'; Make = { $null = $vm | Start-VmMemoryService $socket; $vm | Start-VmMemoryService $socket -ErrorAction Stop } }
        @{ What = 'a path that is a file'; Id = 'NotASocket'; Make = { Set-Content $socket text; $vm | Start-VmMemoryService $socket -ErrorAction Stop } }
        @{ What = 'a folder that is not there'; Id = 'SocketNotFound'; Make = { $vm | Start-VmMemoryService "$TestDrive/none/vm.sock" -ErrorAction Stop } }
        @{ What = 'a path that is too long'; Id = 'SocketPathTooLong'; Make = { $vm | Start-VmMemoryService ('/tmp/' + 'x' * 200) -ErrorAction Stop } }
        @{ What = 'a user that is none'; Id = 'UserNotFound'; Make = { $vm | Start-VmMemoryService $socket -AllowUser no-such-user -ErrorAction Stop } }
        @{ What = 'a VM that was removed'; Id = 'VmDisposed'; Make = { $vm | Remove-GuestVm; $vm | Start-VmMemoryService $socket -ErrorAction Stop } }
        @{ What = 'a VM that is none'; Id = 'ParameterArgumentTransformationError'; Make = { Start-VmMemoryService $socket -Vm none } }
    ) {
        Skip-UnlessSupported $kvm
        $Make | Should -Throw -ErrorId "$Id,*"
        Get-ChildItem /tmp -Filter 'xxxx*' | Should -BeNullOrEmpty
    }

    It 'ends with its VM' {
        Skip-UnlessSupported $kvm
        $service = $vm | Start-VmMemoryService $socket
        $vm | Remove-GuestVm
        $service.State | Should -Be Stopped
        $socket | Should -Not -Exist
        Get-VmMemoryService | Should -BeNullOrEmpty
        Wait-Until { -not (Get-NamedThread 'vm-memory-*') }
    }

    It 'ends with the module, and says so' {
        Skip-UnlessSupported $kvm
        $text = "Import-Module '$manifest'; `$service = New-MmapRegion 64KiB | New-GuestVm | Start-VmMemoryService '$socket'; Remove-Module GuestMemory; " +
            "`"state=`$(`$service.State) socket=`$(Test-Path '$socket')`""
        $output = & $pwsh[0] $pwsh[1..9] -NoProfile -NonInteractive -Command $text 2>&1 | Out-String
        $output | Should -Match 'WARNING: GuestMemory: 1 service\(s\)'
        $output | Should -Match 'state=Stopped socket=False'
    }

    It 'starts again where a shell has just gone' {
        Skip-UnlessSupported $kvm
        $text = "Import-Module '$manifest'; `$null = New-MmapRegion 64KiB | New-GuestVm | Start-VmMemoryService '$socket'; exit 7"
        $null = & $pwsh[0] $pwsh[1..9] -NoProfile -NonInteractive -Command $text 2>&1
        $LASTEXITCODE | Should -Be 7
        ($vm | Start-VmMemoryService $socket -ErrorAction Stop).State | Should -Be Running
    }

    It 'gives a client its time for file mappings, and goes on' {
        Skip-UnlessSupported $kvm
        $service = $vm | Start-VmMemoryService $socket -MappingTimeout 0.2
        $client = [Net.Sockets.Socket]::new('Unix', 'Seqpacket', 'Unspecified')
        try {
            $client.Connect([Net.Sockets.UnixDomainSocketEndPoint]::new($socket))
            # Without its descriptor that is no request; with a ninth file mapping to come the client is waited for in vain.
            $null = $client.Send([Text.Encoding]::UTF8.GetBytes('{"MmapAndRegisterMemory":{"shm":{"descriptor":0,"size":4096},"dest":{"GuestPhysicalAddress":0},"num_file_mappings":9}}'))
            Wait-Until { $service.ErrorCount -eq 1 }
            Invoke-VmMemoryRequest -BalloonTargetReached -Size 1 -SocketPath $socket -ErrorAction Stop | Should -BeOfType 'GuestMemory.Core.VmControl.VmMemoryResponse+Ok'
        }
        finally {
            $client.Dispose()
        }
    }

    It 'waits with -Wait until it is stopped' {
        Skip-UnlessSupported $kvm
        $shell = [powershell]::Create()
        try {
            $null = $shell.AddScript('param($Manifest, $Vm, $Socket) Import-Module $Manifest; $Vm | Start-VmMemoryService $Socket -Wait').AddArgument($manifest).AddArgument($vm).AddArgument($socket)
            $running = $shell.BeginInvoke()
            $service = Wait-Until { Get-VmMemoryService } -PassThru
            $running.IsCompleted | Should -BeFalse
            $service | Stop-VmMemoryService
            $shell.EndInvoke($running).State | Should -Be Stopped
        }
        finally {
            $shell.Dispose()
        }
    }

    It 'stops with Ctrl+C where it waits' {
        Skip-UnlessSupported $kvm
        $shell = [powershell]::Create()
        try {
            $null = $shell.AddScript('param($Manifest, $Vm, $Socket) Import-Module $Manifest; $Vm | Start-VmMemoryService $Socket -Wait').AddArgument($manifest).AddArgument($vm).AddArgument($socket)
            $null = $shell.BeginInvoke()
            $null = Wait-Until { Get-VmMemoryService }
            $shell.Stop()
            Get-VmMemoryService | Should -BeNullOrEmpty
            $socket | Should -Not -Exist
        }
        finally {
            $shell.Dispose()
        }
    }

    It 'starts nothing with -WhatIf' {
        Skip-UnlessSupported $kvm
        $vm | Start-VmMemoryService $socket -WhatIf | Should -BeNullOrEmpty
        $socket | Should -Not -Exist
    }
}
