using GuestMemory.Core;
using GuestMemory.Core.Interop;

namespace GuestMemory.UffdHost;

/// <summary>What came of an image with this process: its record, and its descriptors by their names without the prefix. Those that are left are closed with it.</summary>
internal sealed class KeptFiles : IDisposable
{
    /// <summary>What is known of the files; null where it was not kept.</summary>
    public ImageRecord? Record { get; set; }

    /// <summary>Why the record cannot be read; null where it can, or is not there.</summary>
    public GuestMemoryException? Failure { get; set; }

    public List<(string Name, SafeDescriptor Descriptor)> Descriptors { get; } = [];

    public void Dispose()
    {
        foreach (var (_, descriptor) in Descriptors) descriptor.Dispose();
    }
}
