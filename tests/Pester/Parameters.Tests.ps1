# What holds over the parameters of all cmdlets.
BeforeAll {
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
        $same = 'As=AsJson', 'As=AsRange', 'Addr=Address', 'Prot=Protection'
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
        'Get-GuestMemory', 'Read-GuestMemory 0', 'Write-GuestMemory 0 1', 'Export-GuestMemory /nowhere/vm.mem', 'Get-DirtyBitmap', 'Clear-DirtyBitmap', 'Set-DirtyBitmap -Private'
        'Connect-UffdHandler /nowhere.sock', 'Get-GuestRegionUffdMapping', 'New-GuestVm', 'Remove-MmapRegion'
    ) {
        $failures = & ([scriptblock]::Create("Get-Process -Id $PID | $_")) 2>&1
        @($failures).Count | Should -Be 1
        $failures.FullyQualifiedErrorId | Should -BeLike 'ValueNotSupported,*'
        "$failures" | Should -Match "(?s)another process.*\b$PID\b.*New-MmapRegion -Size SIZE -BackingPath"
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
