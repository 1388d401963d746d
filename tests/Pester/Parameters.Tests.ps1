# What holds over the parameters of all cmdlets.
BeforeAll {
    # As in an admin's shell; the build stops at errors.
    $ErrorActionPreference = 'Continue'
    Import-Module "$PSScriptRoot/../../GuestMemory.psd1"
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $common = [System.Management.Automation.PSCmdlet]::CommonParameters + [System.Management.Automation.PSCmdlet]::OptionalCommonParameters
    $commands = Get-Command -Module GuestMemory
    $names = @{}
    foreach ($command in $commands) {
        $names[$command.Name] = @($command.Parameters.Values | Where-Object Name -NotIn $common | ForEach-Object { $_.Name; $_.Aliases })
    }
}

Describe 'A parameter of one cmdlet' {
    It 'is not taken for another by a cmdlet that lacks it' {
        # PowerShell completes an unknown name to the one that it begins: these mean the same as what they are completed to.
        # A -Source is refused as -SourceTimeout, since no source is a number; a -Memory as -MemoryPath, since no region is a file.
        # An -As is refused as -AsJob, which takes no value.
        # A -All, which is a switch, is refused as -AllowUser, -AllowGroup and -Alloc, which want a value.
        $same = 'As=AsJson', 'As=AsRange', 'As=AsJob', 'Addr=Address', 'Prot=Protection', 'Source=SourceTimeout', 'Memory=MemoryPath', 'Image=ImagePath', 'All=AllowUser', 'All=AllowGroup', 'All=Alloc', 'All=AllGenerations', 'Dest=Destination'
        $taken = foreach ($command in $commands) {
            foreach ($name in $names.Values | ForEach-Object { $_ } | Sort-Object -Unique) {
                if ($name -in $names[$command.Name]) { continue }
                $names[$command.Name].Where{ $_ -like "$name*" -and "$name=$_" -notin $same }.ForEach{ "$($command.Name) -$name is -$_" }
            }
        }
        $taken | Should -BeNullOrEmpty
    }
}

Describe 'What is no memory' {
    AfterEach {
        Clear-TestState
    }

    It 'is refused by <_> with a reason, once' -ForEach @(
        'Read-GuestMemory 0', 'Write-GuestMemory 0 1', 'Export-GuestMemory /nowhere/vm.mem', 'Get-DirtyBitmap', 'Clear-DirtyBitmap', 'Set-DirtyBitmap -Private'
        'Connect-UffdHandler /nowhere.sock', 'Get-GuestRegionUffdMapping', 'New-GuestVm', 'Remove-MmapRegion'
    ) {
        $failures = & ([scriptblock]::Create("Get-Process -Id $PID | $_")) 2>&1
        @($failures).Count | Should -Be 1
        $failures.FullyQualifiedErrorId | Should -BeLike 'ValueNotSupported,*'
        "$failures" | Should -Match "(?s)A process.*\b$PID\b.*Get-GuestMemory -ProcessId $PID"
    }

    It 'is refused by Get-GuestMemory, whatever number it has: <_>' -ForEach '(New-GuestVm web)', '(Get-Date)', "([pscustomobject] @{ Id = 1; ProcessId = 1 })" {
        # A VM has an Id, too, and is no process.
        if ($_ -like '*GuestVm*') { Skip-UnlessSupported (Test-GuestMemorySupport Kvm) }
        $null = New-MmapRegion 64KiB
        $failures = & ([scriptblock]::Create("$($_ -replace 'New-GuestVm', 'Get-MmapRegion | New-GuestVm') | Get-GuestMemory")) 2>&1
        @($failures).Count | Should -Be 1
        $failures.FullyQualifiedErrorId | Should -BeLike 'ValueNotSupported,*'
    }

    It 'is named: <What>' -ForEach @(
        @{ What = 'the name of a region'; Make = { Read-GuestMemory 0 -Memory big }; Text = "*'(Get-MmapRegion big)'*" }
        @{ What = 'text'; Make = { Read-GuestMemory 0 -Memory small }; Text = "'small' (String) is not guest memory*" }
        @{ What = 'a number in the pipeline'; Make = { 5 | Get-GuestMemory }; Text = "'5' (Int32) is not*" }
        @{ What = 'an array with one wrong element'; Make = { Export-GuestMemory "$TestDrive/vm.mem" -Memory $big, 'x' }; Text = "'x' (String) is not*" }
    ) {
        $big = New-MmapRegion 64KiB -Name big
        $failures = & $Make 2>&1
        @($failures).Count | Should -Be 1
        $failures.FullyQualifiedErrorId | Should -BeLike 'ValueNotSupported,*'
        "$failures" | Should -BeLike $Text
        "$TestDrive/vm.mem" | Should -Not -Exist -Because 'without the refused part it would be another memory'
    }

    It 'is a VM, whose memory is a property' {
        Skip-UnlessSupported (Test-GuestMemorySupport Kvm)
        $vm = New-MmapRegion 64KiB | New-GuestVm web
        { $vm | Read-GuestMemory 0 -ErrorAction Stop } | Should -Throw '*(Get-GuestVm web).Memory*' -ErrorId 'ValueNotSupported,*'
        ($vm.Memory | Read-GuestMemory 0 16).Size | Should -Be 16
    }

    It 'may be a process whose memfd is mapped' {
        $region = New-MmapRegion 64KiB -Memfd
        $region | Write-GuestMemory 0 'shared'
        $descriptor = [IO.Directory]::GetFileSystemEntries("/proc/$PID/fd").Where({ [IO.FileInfo]::new($_).LinkTarget -like '/memfd:guest_mem*' }, 'Last')[0]
        New-MmapRegion 64KiB 0x100000 -BackingPath $descriptor | Read-GuestMemory 0x100000 6 -Encoding ascii | Should -Be shared
    }
}

Describe 'A region' {
    AfterEach {
        Clear-TestState
    }

    It 'is the source of a request also by -Memory and -Region' {
        $region = New-MmapRegion 64KiB 0x100000000 -Memfd
        foreach ($name in 'Source', 'Memory', 'Region') {
            $given = @{ $name = $region }
            New-VmMemoryRequest -RegisterMemory @given -AsJson | Should -BeLike '{"RegisterMemory":*4294967296*'
        }
        { New-VmMemoryRequest -UnregisterMemory -Region 5 } | Should -Throw -ErrorId 'AmbiguousParameterSet,*'
        { New-VmMemoryRequest -RegisterMemory -Memory big -Destination 0 -ErrorAction Stop } | Should -Throw -ErrorId 'FileNotFound,*' -Because 'text is a path, as for -Source'
    }
}

Describe 'The tabulator' {
    BeforeEach {
        $region = New-MmapRegion 64KiB -Name 'boot rom'
        $region | Export-GuestMemory "$TestDrive/vm.mem" -Force
    }

    AfterEach {
        Clear-TestState
    }

    It 'offers regions as commands where objects are expected, and as names where names will do' {
        Get-Completion 'Read-GuestMemory 0 -Memory ' | Should -Be "(Get-MmapRegion 'boot rom')"
        Get-Completion 'Start-UffdHandler a.sock -InProcess -Memory b' | Should -Be "(Get-MmapRegion 'boot rom')"
        Get-Completion 'Remove-MmapRegion ' | Should -Be "'boot rom'"
        Get-Completion 'Remove-MmapRegion b' | Should -Be "'boot rom'"
        (Read-GuestMemory 0 16 -Memory (Get-MmapRegion 'boot rom')).Size | Should -Be 16
    }

    It 'offers users' {
        Get-Completion 'Start-UffdHandler a.sock a.mem -AllowUser roo' | Should -Contain root
        Get-Completion 'Start-VmMemoryService a.sock -AllowUser ' | Should -Contain root
        Get-Completion 'Start-UffdHandler a.sock a.mem -AllowGroup roo' | Should -Contain root
    }

    It 'finds sockets by the name of the file' {
        $null = Start-UffdHandler "$TestDrive/web.sock" "$TestDrive/vm.mem"
        foreach ($word in '', 'web', './web', "$TestDrive/w") {
            Get-Completion "Stop-UffdHandler $word" | Should -Be "$TestDrive/web.sock"
        }
    }

    It 'offers a word that was begun once, and nothing that the line editor fails on: <_>' -ForEach @(
        'Stop-UffdHandler w', 'Restart-UffdHandler w', 'Wait-UffdHandler w', 'Get-UffdHandler w', 'Remove-MmapRegion b', 'Get-MmapRegion b', 'Remove-GuestVm w', 'Get-GuestVm w', 'Stop-VmMemoryService w', 'Get-VmMemoryService w'
        'Stop-UffdHandler ', 'Wait-UffdHandler ', 'Remove-MmapRegion ', 'Remove-GuestVm ', 'Stop-VmMemoryService ', 'Stop-UffdHandler -SocketPath ', 'Remove-GuestVm -Name '
    ) {
        $kvm = Test-GuestMemorySupport Kvm
        if ($_ -match 'Vm') {
            Skip-UnlessSupported $kvm
            $null = $region | New-GuestVm web | Start-VmMemoryService "$TestDrive/web.sock"
        }
        else {
            $null = Start-UffdHandler "$TestDrive/web.sock" "$TestDrive/vm.mem"
        }
        $offered = (TabExpansion2 $_ $_.Length).CompletionMatches
        @($offered).Count | Should -Be 1
        $offered[0].CompletionText | Should -Not -BeNullOrEmpty
    }

    It 'offers the slots that are logged' {
        Skip-UnlessSupported (Test-GuestMemorySupport Kvm)
        $null = $region | New-GuestVm web -DirtyTracking
        Get-Completion 'Get-DirtyBitmap -Vm web -Slot ' | Should -Be 0
    }
}
