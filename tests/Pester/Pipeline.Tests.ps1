BeforeAll {
    $manifest = (Resolve-Path "$PSScriptRoot/../../GuestMemory.psd1").Path
    Import-Module $manifest
    Import-Module "$PSScriptRoot/TestHelpers.psm1" -Force
    $userfaultfd = Test-GuestMemorySupport Userfaultfd
    $pwsh = @(Get-PowerShellCommand)

    function Get-Sha256([byte[]] $Bytes, [int] $Offset = 0, [int] $Count = $Bytes.Length - $Offset) {
        [Convert]::ToHexString([Security.Cryptography.SHA256]::Create().ComputeHash($Bytes, $Offset, $Count))
    }
}

Describe 'From one cmdlet to the next' {
    AfterEach {
        Pop-Location -StackName tests -ErrorAction Ignore
        Clear-TestState $TestDrive
    }

    Context 'Memory to a file' {
        It 'works as typed, from any folder' {
            Push-Location $TestDrive -StackName tests
            New-MmapRegion -Size 256MiB -GuestAddress 0x100000000 -DirtyTracking | Export-GuestMemory vm.mem
            (Get-Item "$TestDrive/vm.mem").Length | Should -Be 256MB
        }

        It 'works as typed in a fresh shell, right after the import' {
            $command = "Set-Location '$TestDrive'; Import-Module '$manifest'; New-MmapRegion -Size 1MiB -GuestAddress 0x100000000 -DirtyTracking | Export-GuestMemory vm.mem"
            & $pwsh[0] $pwsh[1..9] -NoProfile -NonInteractive -Command $command | Should -BeNullOrEmpty
            $LASTEXITCODE | Should -Be 0
            (Get-Item "$TestDrive/vm.mem").Length | Should -Be 1MB
        }

        It 'imports without a word, and exports nothing but its cmdlets' {
            $command = "Import-Module '$manifest'; (Get-Command -Module GuestMemory).Count"
            $output = & $pwsh[0] $pwsh[1..9] -NoProfile -NonInteractive -Command $command 2>&1
            $output | Should -Be (Import-PowerShellDataFile $manifest).CmdletsToExport.Count
        }
    }

    Context 'Regions' {
        It 'come one by one and form one address space' {
            $block = 0, 0x1000, 0x2000 | ForEach-Object { New-MmapRegion 4KiB $_ } | Write-GuestMemory 0xFFC -Value 'one guest' -PassThru | Read-GuestMemory 0xFFC 9
            @($block).Count | Should -Be 1
            [Text.Encoding]::ASCII.GetString($block.Bytes) | Should -Be 'one guest'
        }

        It 'are created from a table, listed, and removed' {
            $table = "Name,GuestAddress,Size`nlow,0x0,640KiB`nhigh,0x100000,1MiB`nabove,0x100000000,1MiB" | ConvertFrom-Csv
            $null = $table | New-MmapRegion -DirtyTracking
            (Get-MmapRegion).GuestAddress | Should -Be 0, 0x100000, 0x100000000
            Get-MmapRegion | Write-GuestMemory 0x9FFFF -Bytes 1
            (Get-MmapRegion | Get-DirtyBitmap -AsRange).Address | Should -Be 0x9F000
            Get-MmapRegion h* | Remove-MmapRegion
            (Get-MmapRegion).Name | Should -Be low, above
        }

        It 'keep what they know through JSON and CSV' {
            $region = New-MmapRegion 64KiB 0xFFFFFFFFFFF00000 -Name top
            $copy = $region | Select-Object Name, GuestAddress, Size | ConvertTo-Json | ConvertFrom-Json
            $copy.GuestAddress | Should -Be $region.GuestAddress
            $region | Remove-MmapRegion
            $again = $region | Select-Object Name, GuestAddress, Size | ConvertTo-Csv | ConvertFrom-Csv | New-MmapRegion
            $again.GuestAddress | Should -BeExactly 0xFFFFFFFFFFF00000ul
        }

        It 'lead to where dirty memory can be read' {
            $region = New-MmapRegion 1MiB 0x100000000 -DirtyTracking
            $region | Write-GuestMemory 0x100020010 'here'
            $block = $region | Get-DirtyBitmap -AsRange | ForEach-Object { $region | Read-GuestMemory $_.Address $_.Size }
            $block.Address | Should -Be 0x100020000
            [Text.Encoding]::ASCII.GetString($block.Bytes, 16, 4) | Should -Be here
        }
    }

    Context 'A snapshot' {
        BeforeEach {
            Skip-UnlessSupported $userfaultfd
            $image = "$TestDrive/vm.mem"
            $content = Write-RandomFile $image 8MB
        }

        It 'is restored through page faults, changed, and saved again' {
            Push-Location $TestDrive -StackName tests
            $handler = Start-UffdHandler vm.sock vm.mem -Strategy OnDemand
            $memory = (New-MmapRegion 2MiB -DirtyTracking), (New-MmapRegion 6MiB 0x100000000 -DirtyTracking)
            $memory | Connect-UffdHandler vm.sock

            # Every byte comes from the image.
            $low = $memory | Read-GuestMemory 0 2MiB -Raw
            $memory | Read-GuestMemory 0x100000000 6MiB -OutFile high.bin
            Get-Sha256 $low | Should -Be (Get-Sha256 $content 0 2MB)
            (Get-FileHash high.bin).Hash | Should -Be (Get-Sha256 $content 2MB 6MB)
            Wait-Until { $handler.FaultCount -ge 2048 }
            $handler.ByteCount | Should -Be 8MB
            $handler.LatencyP50 | Should -BeGreaterThan ([timespan]::Zero)
            ($memory | Get-DirtyBitmap).DirtyCount | Should -Be 0, 0

            # What changes is known, and saved over a copy of the image.
            $memory | Write-GuestMemory 0x1FF000 'changed'
            $memory | Write-GuestMemory 0x100000FFE -Bytes 1, 2, 3, 4
            $memory | Get-DirtyBitmap -AsRange | ForEach-Object Address | Should -Be 0x1FF000, 0x100000000
            Copy-Item vm.mem next.mem
            $info = $memory | Export-GuestMemory next.mem -Format Diff -PassThru
            $info.PageCount | Should -Be 3
            $full = $memory | Export-GuestMemory full.mem -Digest -PassThru
            (Get-FileHash next.mem).Hash | Should -Be $full.Digest
            (Get-FileHash vm.mem).Hash | Should -Be (Get-Sha256 $content)

            # The next restore starts from what was saved.
            $memory | Remove-MmapRegion -Force
            $handler | Stop-UffdHandler
            Start-UffdHandler vm.sock next.mem | Should -Not -BeNullOrEmpty
            $again = (New-MmapRegion 2MiB), (New-MmapRegion 6MiB 0x100000000)
            $again | Connect-UffdHandler vm.sock
            $again | Read-GuestMemory 0x1FF000 7 -Encoding ascii | Should -Be changed
            ($again | Read-GuestMemory 0x100000FFE 4).Bytes | Should -Be 1, 2, 3, 4
            ($again | Read-GuestMemory 0x100400000 16).Bytes | Should -Be $content[(6MB)..(6MB + 15)]
        }

        It 'is restored by two VMs at once, each with its own changes' {
            $handler = Start-UffdHandler "$TestDrive/vm.sock" $image -Strategy OnDemand
            $first, $second = (New-MmapRegion 8MiB -Name first), (New-MmapRegion 8MiB -Name second)
            $first | Connect-UffdHandler $handler.SocketPath
            $second | Connect-UffdHandler $handler.SocketPath
            Wait-Until { $handler.ConnectionCount -eq 2 }
            $first | Write-GuestMemory 0x1000 'first'
            $second | Write-GuestMemory 0x1000 'second'
            foreach ($vm in $first, $second) {
                $vm | Read-GuestMemory 0x1000 $vm.Name.Length -Encoding ascii | Should -Be $vm.Name
                $read = $vm | Read-GuestMemory 0x2000 0x7FE000 -Raw
                Get-Sha256 $read | Should -Be (Get-Sha256 $content 0x2000 0x7FE000)
            }
            $first | Remove-MmapRegion -Force
            Wait-Until { $handler.ConnectionCount -eq 1 }
            ($second | Read-GuestMemory 0 16).Bytes | Should -Be $content[0..15]
            $handler.State | Should -Be Serving
        }

        It 'is restored by a VM in another process, whose death ends only its own connection' {
            $handler = Start-UffdHandler "$TestDrive/vm.sock" $image -Strategy OnDemand
            $mine = New-MmapRegion 8MiB
            $mine | Connect-UffdHandler $handler.SocketPath
            Wait-Until { $handler.ConnectionCount -eq 1 }
            $before = Get-DescriptorCount
            Set-Content "$TestDrive/vm.ps1" @'
param($Manifest, $SocketPath)
Import-Module $Manifest
$region = New-MmapRegion 8MiB 0x100000000
$region | Connect-UffdHandler $SocketPath
$read = $region | Read-GuestMemory 0x100000000 4MiB -Raw
[Convert]::ToHexString([Security.Cryptography.SHA256]::HashData($read))
[Console]::Out.Flush()
$null = [Console]::In.ReadLine()
'@
            $start = [Diagnostics.ProcessStartInfo]::new($pwsh[0], [string[]] (@($pwsh[1..9]) + '-NoProfile', '-NonInteractive', '-File', "$TestDrive/vm.ps1", $manifest, $handler.SocketPath))
            $start.RedirectStandardInput = $start.RedirectStandardOutput = $true
            $vm = [Diagnostics.Process]::Start($start)
            try {
                $vm.StandardOutput.ReadLine() | Should -Be (Get-Sha256 $content 0 4MB)
                $handler.ConnectionCount | Should -Be 2
            }
            finally {
                $vm.Kill()
                $vm.WaitForExit()
                $vm.Dispose()
            }
            Wait-Until { $handler.ConnectionCount -eq 1 }
            $handler.Error | Should -BeNullOrEmpty
            ($mine | Read-GuestMemory 0x700000 16).Bytes | Should -Be $content[0x700000..0x70000F]
            Wait-Until { (Get-DescriptorCount) -le $before }
        }

        It 'is restored into 2 MiB pages from an image of small ones' {
            Invoke-WithHugePage 4 {
                $handler = Start-UffdHandler "$TestDrive/vm.sock" $image -Strategy OnDemand
                $memory = (New-MmapRegion 2MiB -HugePageSize 2MiB), (New-MmapRegion 6MiB 0x100000000 -HugePageSize 2MiB)
                $memory | Connect-UffdHandler $handler.SocketPath
                $read = $memory | Read-GuestMemory 0x100000000 6MiB -Raw
                Get-Sha256 $read | Should -Be (Get-Sha256 $content 2MB 6MB)
                ($memory | Read-GuestMemory 0x1FFFF0 16).Bytes | Should -Be $content[0x1FFFF0..0x1FFFFF]
                Wait-Until { $handler.FaultCount -eq 4 }
                $memory | Remove-MmapRegion -Force
            }
        }
    }
}
