# A real Firecracker, restored by the handler: its guest checks every page of its own memory, and drives the balloon.

BeforeAll {
    $root = Split-Path (Split-Path $PSScriptRoot)
    Import-Module (Join-Path $root GuestMemory.psd1)
    Import-Module (Join-Path $root tests Pester TestHelpers.psm1) -Force
    Import-Module (Join-Path $PSScriptRoot Firecracker.psm1) -Force

    $size = 128MB
    # In the snapshot, MiB and pages of 4 KiB.
    $balloon = @{ Size = 8; Pages = 8 * 256 }
    $program = Find-Firecracker
    $kvm = Test-GuestMemorySupport Kvm
    $userfaultfd = Test-GuestMemorySupport Userfaultfd
    $lacking = if (-not $program) {
        'needs Firecracker: the environment variable FIRECRACKER, or firecracker on the path'
    }
    elseif (-not (Get-Command gcc -CommandType Application -ErrorAction Ignore)) {
        'needs gcc: apt-get install gcc'
    }
    elseif ([Runtime.InteropServices.RuntimeInformation]::OSArchitecture -ne 'X64') {
        'needs an x86-64 host: the guest is written for one'
    }
    else {
        foreach ($feature in $kvm, $userfaultfd) {
            if (-not $feature.Supported) { "this host lacks $($feature.Feature): $($feature.Detail) $($feature.Remedy)" }
        }
    }
    $running = [Collections.Generic.List[object]]::new()

    function Restore-Vm([object] $Handler) {
        $vm = Start-Firecracker $program $directory
        $running.Add($vm)
        Invoke-Firecracker $vm Put snapshot/load @{
            snapshot_path = "$directory/vm.state"
            mem_backend   = @{ backend_type = 'Uffd'; backend_path = $Handler.SocketPath }
            resume_vm     = $true
        }
        $vm
    }

    function Resize-Balloon([object[]] $Vm, [int] $Size) {
        foreach ($one in $Vm) { Invoke-Firecracker $one Patch balloon @{ amount_mib = $Size } }
    }

    function Wait-Vm([object[]] $Vm, [int] $BalloonSize) {
        foreach ($one in $Vm) { Wait-GuestRound $one ($BalloonSize * 256) }
    }

    function Open-Handler([string] $Strategy, [hashtable] $More = @{}, [string] $Image = "$directory/vm.mem") {
        if ($Strategy -eq 'Replay') { $More.ReplayPath = $record }
        Start-UffdHandler "$directory/uffd.sock" $Image -Strategy $Strategy -InProcess:$false @More
    }

    function Invoke-WorkerKill([object] $Handler) {
        # Kills the worker that serves, and returns when another one does.
        $worker = $Handler.WorkerProcessId
        Stop-Process -Id $worker -Force
        Wait-Until { $Handler.WorkerProcessId -notin 0, $worker }
    }

    if ($lacking) { return }
    $directory = [IO.Directory]::CreateTempSubdirectory('guestmemory-fc-').FullName
    $record = "$directory/vm.touches"
    Build-Guest "$directory/guest" $size
    $vm = Start-Firecracker $program $directory
    try {
        Invoke-Firecracker $vm Put machine-config @{ vcpu_count = 2; mem_size_mib = $size / 1MB }
        Invoke-Firecracker $vm Put boot-source @{ kernel_image_path = "$directory/guest"; boot_args = 'console=ttyS0' }
        Invoke-Firecracker $vm Put balloon @{ amount_mib = $balloon.Size; deflate_on_oom = $false }
        Invoke-Firecracker $vm Put actions @{ action_type = 'InstanceStart' }
        Wait-GuestRound $vm $balloon.Pages
        Invoke-Firecracker $vm Patch vm @{ state = 'Paused' }
        Invoke-Firecracker $vm Put snapshot/create @{ snapshot_type = 'Full'; snapshot_path = "$directory/vm.state"; mem_file_path = "$directory/vm.mem" }
    }
    finally {
        Stop-Firecracker $vm
    }
    # What one restored VM touches, for Replay.
    $handler = Open-Handler OnDemand @{ RecordPath = $record }
    try {
        Wait-Vm (Restore-Vm $handler) $balloon.Size
    }
    finally {
        Stop-Firecracker $running
        $running.Clear()
        Stop-UffdHandler $handler
    }
}

AfterAll {
    if (-not $lacking) { Remove-Item $directory -Recurse -Force }
}

Describe 'A real Firecracker' {
    BeforeEach {
        if ($lacking) { Set-ItResult -Skipped -Because $lacking }
    }

    AfterEach {
        if ($lacking) { return }
        Stop-Firecracker $running
        $running.Clear()
        Clear-TestState
        Remove-Item "$directory/*.console", "$directory/*.errors", "$directory/*.api"
    }

    It 'finds a page that is wrong' {
        Copy-Item "$directory/vm.mem" "$directory/wrong.mem"
        $file = [IO.File]::OpenWrite("$directory/wrong.mem")
        $file.Position = 20000 * 4096 + 8
        $file.WriteByte(0xff)
        $file.Dispose()
        $vm = Restore-Vm (Open-Handler OnDemand -Image "$directory/wrong.mem")
        { Wait-Vm $vm $balloon.Size } | Should -Throw '*wrong page 20000 word 1 has 0x*ff not 0x*'
    }

    It 'finds every page right, two of them at once, with <_>' -ForEach OnDemand, Window, FaultAll, Background, Replay {
        $handler = Open-Handler $_
        $vms = 1..2 | ForEach-Object { Restore-Vm $handler }
        foreach ($size in $balloon.Size, 40, 0, 20) {
            Resize-Balloon $vms $size
            Wait-Vm $vms $size
        }
        $handler.Error | Should -BeNullOrEmpty
        $handler.ConnectionCount | Should -Be 2
        $handler.FaultCount | Should -BeGreaterThan 0
        $handler.WorkerCount | Should -Be 1
    }

    It 'finds every page right while worker and supervisor are killed, with <_>' -ForEach OnDemand, Window, FaultAll, Background, Replay {
        $handler = Open-Handler $_
        $vms = 1..2 | ForEach-Object { Restore-Vm $handler }
        Invoke-WorkerKill $handler
        Resize-Balloon $vms 40
        Invoke-WorkerKill $handler
        Wait-Vm $vms 40
        Resize-Balloon $vms 0
        Invoke-WorkerKill $handler
        Wait-Vm $vms 0
        # The worker serves on, as long as it has VMs.
        $worker = Get-Process -Id $handler.WorkerProcessId
        Resize-Balloon $vms 40
        Stop-Process -Id $handler.ProcessId -Force
        Wait-Vm $vms 40
        Resize-Balloon $vms 0
        Wait-Vm $vms 0
        $worker.HasExited | Should -BeFalse
        Stop-Firecracker $vms
        $running.Clear()
        $worker.WaitForExit(60000) | Should -BeTrue
    }

    It 'finds every page right while the handler is restarted' {
        $handler = Open-Handler OnDemand
        $vms = 1..2 | ForEach-Object { Restore-Vm $handler }
        Resize-Balloon $vms 40
        $handler = Restart-UffdHandler $handler -PassThru
        Wait-Vm $vms 40
        Resize-Balloon $vms 0
        Wait-Vm $vms 0
        $handler.ConnectionCount | Should -Be 2
        $handler.Error | Should -BeNullOrEmpty
    }
}
