# The library's messages name no cmdlet and no switch; the module's error records recommend them.
BeforeAll {
    # As in an admin's shell; the build stops at errors.
    $ErrorActionPreference = 'Continue'
    $root = Split-Path (Split-Path $PSScriptRoot)
    Import-Module (Join-Path $root GuestMemory.psd1)
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $userfaultfd = Test-GuestMemorySupport Userfaultfd
    $kvm = Test-GuestMemorySupport Kvm

    function Get-Literal([string] $Assembly) {
        # The string literals of an assembly.
        $reader = [System.Reflection.PortableExecutable.PEReader]::new([IO.File]::OpenRead($Assembly))
        try {
            $metadata = [System.Reflection.Metadata.PEReaderExtensions]::GetMetadataReader($reader)
            $handle = [System.Reflection.Metadata.Ecma335.MetadataTokens]::UserStringHandle(1)
            while (-not $handle.IsNil) {
                $metadata.GetUserString($handle)
                $handle = [System.Reflection.Metadata.Ecma335.MetadataReaderExtensions]::GetNextHandle($metadata, $handle)
            }
        }
        finally {
            $reader.Dispose()
        }
    }

    function Get-Advice([scriptblock] $Script) {
        # What the one error of a script recommends.
        $failures = @(& $Script 2>&1 | Where-Object { $_ -is [System.Management.Automation.ErrorRecord] })
        $failures.Count | Should -Be 1 -Because "$failures"
        $failures[0].ErrorDetails.Message | Should -Be $failures[0].Exception.Message
        $failures[0].ErrorDetails.RecommendedAction
    }
}

Describe 'The messages of <_>' -ForEach 'GuestMemory.Core', 'GuestMemory.UffdHost' {
    It 'name no cmdlet and no switch' {
        $assembly = Get-ChildItem (Join-Path $root bin) -Recurse -Filter "$_.dll" | Select-Object -First 1
        $literals = @(Get-Literal $assembly.FullName)
        $literals.Count | Should -BeGreaterThan 50
        $cmdlets = '\b({0})-[A-Z]\w+' -f ((Get-Verb).Verb -join '|')
        $switches = "(?<![\w-])-({0})\b" -f ((Get-Command -Module GuestMemory).Parameters.Keys.ForEach{ [regex]::Escape($_) } -join '|')
        $literals -cmatch "$cmdlets|$switches|[Cc]mdlet|PowerShell" | Should -BeNullOrEmpty
    }

    It 'are not explained by cmdlets in the source either' {
        $source = Get-ChildItem (Join-Path $root src $_) -Recurse -Filter *.cs | Where-Object FullName -NotMatch '/(obj|bin)/'
        $names = (Get-Command -Module GuestMemory).Name -join '|'
        $source | Select-String -CaseSensitive "\b($names)\b|\b[Cc]mdlet|PowerShell" | ForEach-Object { "$($_.Filename):$($_.LineNumber): $($_.Line.Trim())" } | Should -BeNullOrEmpty
    }
}

Describe 'The recommendation' {
    BeforeEach {
        $region = New-MmapRegion 64KiB -Name plain
        $region | Export-GuestMemory "$TestDrive/vm.mem" -Force
    }

    AfterEach {
        Clear-TestState
    }

    It 'names what to type: <What>' -ForEach @(
        @{ What = 'a file that exists'; Make = { $region | Export-GuestMemory "$TestDrive/vm.mem" }; Text = '-Force replaces*' }
        @{ What = 'a base of another size'; Make = { Set-Content "$TestDrive/small.mem" x; $tracked = New-MmapRegion 64KiB 0x100000 -DirtyTracking; $tracked | Export-GuestMemory "$TestDrive/small.mem" -Format Diff }; Text = '-Force replaces*' }
        @{ What = 'an image that is served'; Make = { $tracked = New-MmapRegion 64KiB 0x100000 -DirtyTracking; $null = Start-UffdHandler "$TestDrive/vm.sock" "$TestDrive/vm.mem"; $tracked | Export-GuestMemory "$TestDrive/vm.mem" -Format Diff }; Text = "'Stop-UffdHandler'*-Force*" }
        @{ What = 'a file to read into'; Make = { $region | Read-GuestMemory 0 16 -OutFile "$TestDrive/vm.mem" }; Text = '-Force replaces*' }
        @{ What = 'no region'; Make = { Get-MmapRegion none* | Get-GuestMemory }; Text = "*'Get-MmapRegion*" }
        @{ What = 'a region without a bitmap'; Make = { $region | Get-DirtyBitmap }; Text = "*'New-MmapRegion -DirtyTracking'*'Set-DirtyBitmap -Private'*" }
        @{ What = 'a handler that tracks nothing'; Make = { Start-UffdHandler "$TestDrive/vm.sock" "$TestDrive/vm.mem" | Get-DirtyBitmap }; Text = "*'Start-UffdHandler -TrackDirty'*" }
        @{ What = 'no record'; Make = { Start-UffdHandler "$TestDrive/vm.sock" "$TestDrive/vm.mem" -ReplayPath "$TestDrive/none" }; Text = "'Start-UffdHandler -RecordPath*" }
        @{ What = 'no handler'; Make = { $region | Connect-UffdHandler "$TestDrive/none.sock" }; Text = "'Start-UffdHandler -SocketPath*" }
        @{ What = 'no service'; Make = { Invoke-VmMemoryRequest -UnregisterMemory -RegionId 1 -SocketPath "$TestDrive/none.sock" }; Text = "'Start-VmMemoryService -SocketPath*" }
        @{ What = 'a directory of everyone'; Make = { $null = New-Item -ItemType Directory "$TestDrive/open"; chmod 777 "$TestDrive/open"; Start-UffdHandler "$TestDrive/open/vm.sock" "$TestDrive/vm.mem" }; Text = '-Force listens*' }
    ) {
        Get-Advice $Make | Should -BeLike $Text
    }

    It 'says how a region that is in use is removed, and what is left when its handler is gone' {
        Skip-UnlessSupported $userfaultfd
        $handler = Start-UffdHandler "$TestDrive/vm.sock" "$TestDrive/vm.mem" -Strategy OnDemand
        # One that no read has touched yet.
        $region = New-MmapRegion 64KiB 0x100000
        $region | Connect-UffdHandler "$TestDrive/vm.sock"
        Wait-Until { $handler.ConnectionCount }
        Get-Advice { $region | Remove-MmapRegion } | Should -BeLike "*'Stop-UffdHandler'*-Force*"
        $handler | Stop-UffdHandler -WarningAction SilentlyContinue
        Get-Advice { $region | Read-GuestMemory 0x100000 16 } | Should -BeLike "'Remove-MmapRegion -Force'*'Connect-UffdHandler'*"
        $region | Remove-MmapRegion -Force
    }

    It 'says how a VM is made that logs, and what a request lacks' {
        Skip-UnlessSupported $kvm
        $vm = $region | New-GuestVm web
        Get-Advice { $vm | Get-DirtyBitmap -Slot 0 } | Should -BeLike "*'New-GuestVm -DirtyTracking'*"
        Get-Advice { Invoke-VmMemoryRequest -UnregisterMemory -RegionId 1 -Vm $vm } | Should -BeLike '*RegionId*'
    }

    It 'is shown under the message' {
        $region | Get-DirtyBitmap -ErrorAction SilentlyContinue -ErrorVariable failure
        $failure[0] | Out-String -Width 200 | Should -Match "(?s)'plain' has no dirty bitmap.*Recommendation: .*New-MmapRegion -DirtyTracking"
    }
}
