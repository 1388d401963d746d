@{
    RootModule             = 'bin/GuestMemory.PowerShell.dll'
    ModuleVersion          = '0.1.0'
    GUID                   = '6d0a8b0e-5d0c-4f0e-9d0b-7a5d0c9c1f42'
    Author                 = 'The GuestMemory authors'
    CompanyName            = 'GuestMemory'
    Copyright              = '(c) The GuestMemory authors. MIT licence.'
    Description            = 'The memory of virtual machines from PowerShell on Linux: map it, read and write it, serve its page faults from a snapshot through userfaultfd, see which pages changed, and write them out.'
    PowerShellVersion      = '7.6'
    CompatiblePSEditions   = @('Core')
    FormatsToProcess       = @('bin/GuestMemory.Format.ps1xml')
    TypesToProcess         = @('bin/GuestMemory.Types.ps1xml')
    FunctionsToExport      = @()
    AliasesToExport        = @()
    VariablesToExport      = @()
    CmdletsToExport        = @(
        'Add-UffdImage'
        'Clear-DirtyBitmap'
        'Compare-GuestMemory'
        'Connect-UffdHandler'
        'Export-DirtyBitmap'
        'Export-GuestMemory'
        'Get-DirtyBitmap'
        'Get-DirtyTracking'
        'Get-GuestKernel'
        'Get-GuestMemory'
        'Get-GuestMemoryExport'
        'Get-GuestMemoryImage'
        'Get-GuestProcess'
        'Get-GuestRegionUffdMapping'
        'Get-GuestVm'
        'Get-MmapRegion'
        'Get-UffdHandler'
        'Get-UffdImage'
        'Get-UffdVm'
        'Get-VhostUserBackend'
        'Get-VmMemoryService'
        'Get-XenDomain'
        'Import-DirtyBitmap'
        'Import-GuestMemory'
        'Invoke-VmMemoryRequest'
        'Measure-DirtyRate'
        'Merge-GuestMemoryImage'
        'Merge-UffdRecord'
        'New-GuestVm'
        'New-MmapRegion'
        'New-VmMemoryRequest'
        'Publish-GuestMemoryImage'
        'Read-GuestMemory'
        'Remove-GuestMemoryImage'
        'Remove-GuestVm'
        'Remove-MmapRegion'
        'Remove-UffdImage'
        'Restart-UffdHandler'
        'Save-GuestMemoryImage'
        'Search-GuestMemory'
        'Set-DirtyBitmap'
        'Set-UffdVm'
        'Start-DirtyTracking'
        'Start-GuestMemoryExport'
        'Start-UffdHandler'
        'Start-VhostUserBackend'
        'Start-VmMemoryService'
        'Stop-DirtyTracking'
        'Stop-GuestMemoryExport'
        'Stop-UffdHandler'
        'Stop-UffdVm'
        'Stop-VhostUserBackend'
        'Stop-VmMemoryService'
        'Test-GuestMemoryImage'
        'Test-GuestMemorySupport'
        'Wait-UffdHandler'
        'Watch-DirtyBitmap'
        'Write-GuestMemory'
    )
    PrivateData            = @{
        PSData = @{
            Tags         = @('userfaultfd', 'Firecracker', 'microVM', 'snapshot', 'KVM', 'memory', 'Linux', 'PSEdition_Core')
            LicenseUri   = 'https://opensource.org/license/mit'
            # ProjectUri and IconUri follow when the project has a public address; icon.png is in the package.
            # In a package the newest section of that file stands here.
            ReleaseNotes = 'See CHANGELOG.md.'
        }
    }
}
