BeforeAll {
    $manifest = (Resolve-Path "$PSScriptRoot/../../GuestMemory.psd1").Path
    Import-Module $manifest
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
}

Describe 'Test-GuestMemorySupport' {
    It 'gives a row a feature, each with what was found' {
        $rows = Test-GuestMemorySupport
        $rows | ForEach-Object { $_ | Should -BeOfType GuestMemory.Core.HostFeature }
        $rows | ForEach-Object { $_.Detail | Should -Not -BeNullOrEmpty -Because $_.Feature }
        foreach ($feature in 'Userfaultfd', 'DevUserfaultfd', 'Uffd:EVENT_REMOVE', 'Uffd:MISSING_HUGETLBFS', 'Uffd:MISSING_SHMEM', 'Kvm', 'Kvm:MemorySlots', 'Kvm:ReadOnlyMemory', 'Kvm:IoEventFd', 'Kvm:ManualDirtyLogProtect', 'Kvm:DirtyRing', 'Kvm:PreparedMemory', 'Xen', 'Xen:Privcmd', 'Xen:Gntdev', 'Xen:Control', 'PagemapScan') {
            $rows.Feature | Should -Contain $feature
        }
        $rows.Feature -like 'HugePages*' | Should -Not -BeNullOrEmpty
        ($rows.Feature | Sort-Object -Unique).Count | Should -Be $rows.Count
    }

    It 'says what helps where something that can be had is missing' {
        foreach ($row in Test-GuestMemorySupport Userfaultfd, Kvm, Xen*, HugePages*, PagemapScan) {
            if ($row.Supported) {
                $row.Remedy | Should -BeNullOrEmpty -Because $row.Feature
            }
            else {
                $row.Remedy | Should -Not -BeNullOrEmpty -Because $row.Feature
            }
        }
    }

    It 'finds features by name and wildcards' {
        (Test-GuestMemorySupport kvm).Feature | Should -Be Kvm
        (Test-GuestMemorySupport Kvm, Xen).Feature | Should -Be Kvm, Xen
        Test-GuestMemorySupport Uffd:* | ForEach-Object { $_.Feature | Should -BeLike 'Uffd:*' }
        Test-GuestMemorySupport none* | Should -BeNullOrEmpty
    }

    It 'refuses the name of a feature that it does not know' {
        $rows = Test-GuestMemorySupport Kvm, Kvn -ErrorAction SilentlyContinue -ErrorVariable failure
        $rows.Feature | Should -Be Kvm
        $failure.FullyQualifiedErrorId | Should -BeLike 'ValueNotSupported,*'
        "$failure" | Should -Match "'Kvn'"
    }

    It 'agrees with the host about <Feature>' -ForEach @(
        @{ Feature = 'Kvm'; Path = '/dev/kvm' }
        @{ Feature = 'DevUserfaultfd'; Path = '/dev/userfaultfd' }
    ) {
        $row = Test-GuestMemorySupport $Feature
        $row.Supported | Should -Be (bash -c "[ -r $Path ] && [ -w $Path ] && echo True || echo False")
        $row.Detail | Should -Match ([regex]::Escape($Path))
    }

    It 'agrees with the host about huge pages' {
        $folder = '/sys/kernel/mm/hugepages/hugepages-2048kB'
        if (-not (Test-Path $folder)) {
            Set-ItResult -Skipped -Because 'this host has no huge pages of 2 MiB'
        }
        $row = Test-GuestMemorySupport HugePages:2048kB
        $row.Detail | Should -Match '^\d+ of \d+ pages are free\.$'
        if (-not $row.Supported) {
            $row.Remedy | Should -Match ([regex]::Escape("$folder/nr_hugepages"))
        }
    }

    It 'leaves no descriptor and no process' {
        $null = Test-GuestMemorySupport
        $before = Get-DescriptorCount
        $null = Test-GuestMemorySupport
        Get-DescriptorCount | Should -BeLessOrEqual $before
    }

    It 'tells a user without rights what to ask for' {
        if (Test-Path /proc/sys/vm/unprivileged_userfaultfd) {
            if ((Get-Content /proc/sys/vm/unprivileged_userfaultfd) -eq '1') {
                Set-ItResult -Skipped -Because 'every user may create a userfaultfd here: vm.unprivileged_userfaultfd is 1'
            }
        }
        $shell = @(Get-OtherUserShell (New-Item -ItemType Directory "$TestDrive/uffd"))
        $script = "Import-Module '$TestDrive/uffd/module/GuestMemory.psd1'; Test-GuestMemorySupport *Userfaultfd | ConvertTo-Json"
        $output = & $shell[0] $shell[1..99] -Command $script
        $rows = ($output | Out-String | ConvertFrom-Json)
        $rows.Feature | Should -Be Userfaultfd, DevUserfaultfd
        $rows.Supported | Should -Be $false, $false
        $rows[0].Detail | Should -Match 'may not create a userfaultfd \(E(PERM|ACCES)\)'
        $rows[0].Remedy | Should -Match 'setfacl.*/dev/userfaultfd'
    }

    It 'tells a user whom /dev/kvm refuses what to ask for, and so does the error' {
        if (-not (Test-Path /dev/kvm)) { Set-ItResult -Skipped -Because 'there is no /dev/kvm here' }
        $shell = @(Get-OtherUserShell (New-Item -ItemType Directory "$TestDrive/kvm"))
        & $shell[0] $shell[1..3] test -w /dev/kvm
        if (-not $LASTEXITCODE) { Set-ItResult -Skipped -Because 'every user may use /dev/kvm here' }
        $script = "Import-Module '$TestDrive/kvm/module/GuestMemory.psd1'
            New-MmapRegion 1MiB 0 | New-GuestVm -ErrorAction SilentlyContinue -ErrorVariable failure
            @{ Row = Test-GuestMemorySupport Kvm; Id = `$failure[0].FullyQualifiedErrorId; Message = `$failure[0].Exception.Message } | ConvertTo-Json"
        $answer = & $shell[0] $shell[1..99] -Command $script | Out-String | ConvertFrom-Json
        $answer.Row.Supported | Should -BeFalse
        $answer.Row.Detail | Should -Match '/dev/kvm'
        $answer.Row.Remedy | Should -Match 'group kvm'
        $answer.Id | Should -BeLike 'KvmDenied,*'
        $answer.Message | Should -Match 'EACCES.*group kvm'
    }

    It 'shows feature, answer, what was found and the remedy' {
        Test-GuestMemorySupport Kvm | Out-String -Width 250 | Should -Match 'Feature\s+Supported\s+Detail\s+Remedy[\s-]+Kvm\s+(True|False)\s+/dev/kvm'
    }

    It 'says what it gives' {
        (Get-Command Test-GuestMemorySupport).OutputType.Type | Should -Be ([GuestMemory.Core.HostFeature])
    }

    It 'completes features' {
        Get-Completion 'Test-GuestMemorySupport Kvm:R' | Should -Be Kvm:ReadOnlyMemory
    }
}
