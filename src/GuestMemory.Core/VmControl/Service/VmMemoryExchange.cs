namespace GuestMemory.Core.VmControl;

/// <summary>A received request, its descriptors, and the file mappings that follow it.</summary>
internal sealed class VmMemoryExchange : IDisposable
{
    private readonly TubeMessage _message;

    private VmMemoryExchange(TubeMessage message, VmMemoryRequest request, FileMappingReceiver? files)
    {
        _message = message;
        Request = request;
        Files = files;
    }

    public VmMemoryRequest Request { get; }

    /// <summary>Receives the file mappings; null where none are announced.</summary>
    public FileMappingReceiver? Files { get; }

    /// <summary>Receives a request.</summary>
    /// <exception cref="GuestMemoryException">The message is not a request, or the tube has failed.</exception>
    public static VmMemoryExchange Receive(Tube tube, TimeSpan fileMappingTimeout)
    {
        var message = tube.Receive(Tube.DefaultMaxDescriptors, CancellationToken.None);
        try
        {
            var request = message.Read(VmControlJson.Default.VmMemoryRequest);
            return new VmMemoryExchange(message, request, request.FilesFrom(tube, fileMappingTimeout));
        }
        catch
        {
            message.Dispose();
            throw;
        }
    }

    public void Dispose()
    {
        Files?.Dispose();
        _message.Dispose();
    }
}
