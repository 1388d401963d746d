using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Kvm;
using GuestMemory.Core.VmControl;

namespace GuestMemory.PowerShell.Commands;

/// <summary>New-GuestVm: a VM of KVM with regions as its memory.</summary>
[Cmdlet(VerbsCommon.New, "GuestVm", SupportsShouldProcess = true)]
[OutputType(typeof(GuestVm))]
public sealed class NewGuestVmCommand : MemoryCmdlet
{
    /// <summary>A name for the VM.</summary>
    [Parameter(Position = 0)]
    [ValidateNotNullOrEmpty]
    public string? Name { get; set; }

    /// <summary>Logs the pages of its memory that the guest writes.</summary>
    [Parameter]
    public SwitchParameter DirtyTracking { get; set; }

    /// <summary>How written pages are logged.</summary>
    [Parameter]
    public DirtyLogMode DirtyLog { get; set; } = DirtyLogMode.ManualProtect;

    /// <summary>The entries of a dirty ring.</summary>
    [Parameter]
    [ValidateRange(1, 65536)]
    public int DirtyRingEntries { get; set; } = 4096;

    /// <inheritdoc/>
    protected override void Process(GuestMemoryMmap memory)
    {
        ArgumentNullException.ThrowIfNull(memory);
        if (Name is not null && Session.HasVm(Name)) throw NameInUse(Name);
        if (!ShouldProcess($"{memory.Regions.Count} region(s), {Formatting.Size(memory.Size)}", "Make a VM")) return;
        var options = new KvmVmOptions { Name = Name ?? Session.NextVmName(), LogDirtyPages = DirtyTracking, DirtyLog = DirtyLog, DirtyRingEntries = (uint)DirtyRingEntries };
        var vm = new GuestVm(new KvmVm(memory, options));
        if (!Session.TryAdd(vm))
        {
            vm.Dispose();
            throw NameInUse(vm.Name);
        }

        WriteObject(vm);
    }

    private static GuestMemoryException NameInUse(string name) =>
        new(GuestMemoryError.NameInUse, $"There is a VM '{name}' already. Give another -Name, or remove that one: 'Remove-GuestVm -Name {name}'.");
}
