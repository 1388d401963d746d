using GuestMemory.Core.Interop;

namespace GuestMemory.Core.Userfault;

/// <summary>Which VM of a handler in this process it is, and by what its memory is read beside the serving. The descriptors are its own.</summary>
/// <param name="id">The number.</param>
/// <param name="name">The name at first.</param>
/// <param name="memory">The memfd that is the VM's memory; null where the VMM did not hand it over.</param>
/// <param name="state">The memfd of the VM's state, where there is one of the memory.</param>
internal sealed class UffdVmIdentity(int id, string name, SafeDescriptor? memory, SafeDescriptor? state) : IDisposable
{
    private volatile string _name = name;

    public int Id => id;

    public SafeDescriptor? Memory => memory;

    public SafeDescriptor? State => state;

    /// <summary>The name. Written under the handler's lock.</summary>
    public string Name
    {
        get => _name;
        set => _name = value;
    }

    public void Dispose()
    {
        memory?.Dispose();
        state?.Dispose();
    }
}
