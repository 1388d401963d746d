using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <summary>A VMM's connection and the VMs that it handed over.</summary>
internal sealed class ConnectionRecord(UffdConnection connection, Action<ConnectionRecord> ready) : IWatched, IDisposable
{
    public UffdConnection Connection => connection;

    public SafeDescriptor Socket => connection.Socket;

    public List<VmRecord> Vms { get; } = [];

    public void Ready() => ready(this);

    public void Dispose()
    {
        foreach (var vm in Vms) vm.Dispose();
        connection.Dispose();
    }
}
