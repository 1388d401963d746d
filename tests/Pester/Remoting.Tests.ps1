# Objects that leave the shell: in a file of Export-Clixml, as JSON, and to another shell by PowerShell remoting over SSH.

BeforeAll {
    $manifest = (Resolve-Path "$PSScriptRoot/../../GuestMemory.psd1").Path
    Import-Module $manifest
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force

    function Assert-Flat([object] $Copy, [object] $Original) {
        # Every property of the original is there and has the same value, as a plain one.
        $names = $Original.PSObject.Properties.Name
        $Copy.PSObject.Properties.Name | Where-Object { $_ -notlike 'PS*' -and $_ -ne 'RunspaceId' } | Should -Be $names
        foreach ($name in $names) {
            $value = $Original.$name
            "$($Copy.$name)" | Should -Be "$value" -Because "that is the original's $name"
            if ($value -is [ulong]) { $Copy.$name | Should -BeOfType ulong }
        }
    }
}

Describe 'What is kept in a file' {
    BeforeEach {
        $region = New-MmapRegion 64KiB 0xfffffffffff00000 -Name top -Memfd -DirtyTracking
        $low = New-MmapRegion 64KiB 0x1000 -Name low
        $memory = $region, $low | Get-GuestMemory
        $region | Write-GuestMemory 0xfffffffffff01000 5
        $file = "$TestDrive/object.xml"
    }

    AfterEach {
        Clear-TestState $TestDrive
    }

    It 'is the region as flat data, shown as the region is' {
        $region | Export-Clixml $file
        $copy = Import-Clixml $file
        $copy.PSTypeNames[0] | Should -Be Deserialized.GuestMemory.Core.GuestRegionMmap
        Assert-Flat $copy $region
        $copy | Out-String | Should -Be ($region | Out-String)
        # A copy is no memory, and says so; but it makes the same region anew.
        { $copy | Read-GuestMemory 0 1 -ErrorAction Stop } | Should -Throw -ErrorId 'ValueNotSupported,*'
        $region | Remove-MmapRegion
        ($copy | New-MmapRegion -Memfd -WarningAction Ignore -ErrorAction Stop | ForEach-Object GuestAddress) | Should -BeExactly 0xfffffffffff00000ul
    }

    It 'is the address space with its regions' {
        $memory | Export-Clixml $file
        $copy = Import-Clixml $file
        $copy.Size | Should -Be 128KB
        $copy.LastAddress | Should -BeExactly $memory.LastAddress
        $copy.Regions.Count | Should -Be 2
        $copy.Regions.Name | Should -Be low, top
        $copy.Regions[1].GuestAddress | Should -BeExactly 0xfffffffffff00000ul
        $copy | Out-String | Should -Be ($memory | Out-String)
    }

    It 'is JSON with the same numbers' {
        $copy = $region | ConvertTo-Json | ConvertFrom-Json
        $copy.PSObject.Properties.Name | Should -Be $region.PSObject.Properties.Name
        [ulong] $copy.GuestAddress | Should -BeExactly $region.GuestAddress
        $copy = $memory | ConvertTo-Json -Depth 3 -WarningVariable warning | ConvertFrom-Json
        $warning | Should -BeNullOrEmpty
        $copy.Regions.Name | Should -Be low, top
        [ulong] $copy.Regions[1].LastAddress | Should -BeExactly $memory.LastAddress
    }

    It 'is what was read, and which pages are dirty' {
        $block = $region | Read-GuestMemory 0xfffffffffff01000 16
        $block, ($region | Get-DirtyBitmap) | Export-Clixml $file
        $copies = Import-Clixml $file
        $copies[0].Bytes | Should -Be $block.Bytes
        $copies[0].Address | Should -BeExactly 0xfffffffffff01000ul
        $copies[1].DirtyCount | Should -Be 1
        $region | Read-GuestMemory $copies[0].Address 1 | ForEach-Object Bytes | Should -Be 5
    }
}

Describe 'What another shell sends, over SSH' {
    BeforeAll {
        $lacking = if (-not (Test-Path /usr/sbin/sshd) -or -not (Get-Command ssh, ssh-keygen -CommandType Application -ErrorAction Ignore)) { 'needs sshd and ssh: apt-get install openssh-server openssh-client' }
        elseif ((id -u) -eq '0' -and (Get-Content /etc/shadow -ErrorAction Ignore) -match '^root:!') { 'the account of root is locked' }
        if ($lacking) { return }
        # A server of its own, on a high port of this host alone, with keys of its own, that ends with the tests.
        $folder = [IO.Directory]::CreateTempSubdirectory('gm-ssh-').FullName
        ssh-keygen -q -t ed25519 -N '' -f "$folder/host"
        ssh-keygen -q -t ed25519 -N '' -f "$folder/user"
        Copy-Item "$folder/user.pub" "$folder/authorized"
        $quoted = @(Get-PowerShellCommand).ForEach{ "'$_'" } -join ' '
        Set-Content "$folder/powershell" "#!/bin/sh`nexec $quoted -sshs -NoLogo -NoProfile"
        chmod 755 "$folder/powershell"
        if ((id -u) -eq '0') { $null = New-Item -ItemType Directory -Force /run/sshd }
        $listener = [Net.Sockets.TcpListener]::new([Net.IPAddress]::Loopback, 0)
        $listener.Start()
        $port = $listener.LocalEndpoint.Port
        $listener.Stop()
        Set-Content "$folder/config" @"
Port $port
ListenAddress 127.0.0.1
HostKey $folder/host
PidFile none
AuthorizedKeysFile $folder/authorized
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowUsers $(id -un)
Subsystem powershell $folder/powershell
"@
        $server = Start-Process /usr/sbin/sshd '-D', '-e', '-f', "$folder/config" -PassThru -RedirectStandardError "$folder/log"
        Set-Content "$folder/known" "[127.0.0.1]:$port $(Get-Content "$folder/host.pub")"
        $there = @{ HostName = '127.0.0.1'; Port = $port; UserName = id -un; KeyFilePath = "$folder/user"; Options = @{ UserKnownHostsFile = "$folder/known"; StrictHostKeyChecking = 'yes'; IdentitiesOnly = 'yes' } }
        $session = Wait-Until -PassThru { New-PSSession @there -ErrorAction Ignore }
        Invoke-Command $session { param($manifest) Import-Module $manifest } -ArgumentList $manifest
    }

    AfterAll {
        if ($lacking) { return }
        ${session} | Remove-PSSession
        ${server}?.Kill($true)
        ${server}?.WaitForExit()
        Remove-Item -Recurse -Force $folder
    }

    AfterEach {
        if (-not $lacking) { Invoke-Command $session { Get-MmapRegion | Remove-MmapRegion } }
        Clear-TestState
    }

    BeforeEach {
        if ($lacking) { Set-ItResult -Skipped -Because $lacking }
    }

    It 'is a region and an address space as flat data, shown as here' {
        $here = New-MmapRegion 64KiB 0xfffffffffff00000 -Name top -DirtyTracking
        $region = Invoke-Command $session { New-MmapRegion 64KiB 0xfffffffffff00000 -Name top -DirtyTracking }
        $region.GuestAddress | Should -BeExactly 0xfffffffffff00000ul
        $region.Size | Should -BeOfType ulong
        $region.Protection | Should -Be ReadWrite
        $region.DirtyTracking | Should -BeTrue
        $region.PSComputerName | Should -Be 127.0.0.1
        $region.PSObject.Properties.Name | Where-Object { $_ -notin 'PSComputerName', 'RunspaceId', 'PSShowComputerName' } | Should -Be $here.PSObject.Properties.Name
        ($region | Out-String) | Should -Match 'Name\s+GuestAddress\s+LastAddress\s+Size\s+Tracked\s+Backin'
        $memory = Invoke-Command $session { $null = New-MmapRegion 64KiB 0x1000 -Name low; Get-MmapRegion | Get-GuestMemory }
        $memory.Regions.Name | Should -Be low, top
        $memory.Regions[1].GuestAddress | Should -BeExactly 0xfffffffffff00000ul
        $memory.Size | Should -Be 128KB
    }

    It 'is what it read there, and what is wrong, with its id' {
        $block = Invoke-Command $session { New-MmapRegion 64KiB 0x1000 -Name low | Write-GuestMemory 0x1000 'over there' -PassThru | Read-GuestMemory 0x1000 10 }
        [Text.Encoding]::ASCII.GetString($block.Bytes) | Should -Be 'over there'
        $block.Address | Should -Be 0x1000
        $failure = Invoke-Command $session { Get-MmapRegion | Read-GuestMemory 0 1 } -ErrorAction SilentlyContinue -ErrorVariable failures
        $failure | Should -BeNullOrEmpty
        $failures[0].FullyQualifiedErrorId | Should -BeLike 'InvalidGuestAddress,*'
        "$($failures[0])" | Should -BeLike 'Guest address 0x0 is not mapped.*'
    }

    It 'makes the same regions here' {
        $null = Invoke-Command $session { New-MmapRegion 64KiB 0x100000000 -Name high } | Select-Object Name, GuestAddress, Size | New-MmapRegion
        (Get-MmapRegion high).GuestAddress | Should -Be 0x100000000
    }
}
