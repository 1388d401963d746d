namespace GuestMemory.Core;

/// <summary>A virtual machine of this process, by its name: what New-GuestVm gives.</summary>
public sealed class GuestVm : IDisposable
{
    /// <param name="vm">The VM; owned from here on.</param>
    public GuestVm(KvmVm vm)
    {
        ArgumentNullException.ThrowIfNull(vm);
        Vm = vm;
    }

    /// <summary>The name.</summary>
    public string Name => Vm.Name;

    /// <summary>The number of the VM in this process.</summary>
    public int Id => Vm.Id;

    /// <summary>The base memory.</summary>
    public GuestMemoryMmap Memory => Vm.Memory;

    /// <summary>The memory slots, as they are now.</summary>
    public IReadOnlyList<KvmSlot> Slots => Vm.Slots;

    /// <summary>How the pages that the guest writes are logged.</summary>
    public DirtyLogMode DirtyLog => Vm.DirtyLog;

    /// <summary>Whether it was removed.</summary>
    public bool IsDisposed => Vm.IsDisposed;

    /// <summary>The VM of KVM behind it.</summary>
    public KvmVm Vm { get; }

    /// <summary>Ends the VM; see <see cref="KvmVm.Dispose"/>.</summary>
    public void Dispose() => Vm.Dispose();

    /// <inheritdoc/>
    public override string ToString() => Name;
}
