using GuestMemory.Core.Images;

namespace GuestMemory.Core.Userfault;

/// <summary>One of the images that a page-fault handler serves: a VM that connects to its socket gets its memory out of this image.</summary>
public sealed record UffdImageOptions
{
    /// <summary>
    /// What the image is called: 1 to 64 letters, digits, '-', '_' and '.', with a letter or digit at both ends, and no number. No other image of the handler
    /// has the name, in whichever case.
    /// </summary>
    public required string Name { get; init; }

    /// <summary>Where VMMs connect whose VMs have this memory; at most 107 bytes.</summary>
    public required string SocketPath { get; init; }

    /// <summary>The memory image, or an image of chunks (<see cref="ChunkedImage"/>).</summary>
    public required string MemoryPath { get; init; }

    /// <summary>Sparse files of the image's length with the changes of later snapshots, the oldest first.</summary>
    // Where JSON says nothing of it, its reader gives null.
    public IReadOnlyList<string> LayerPaths { get; init => field = value ?? []; } = [];

    /// <summary>Writes which pages of this image are touched first to this file; see <see cref="UffdHandlerOptions.RecordPath"/>.</summary>
    public string? RecordPath { get; init; }

    /// <summary>Brings the pages of such a file in first; see <see cref="UffdHandlerOptions.ReplayPath"/>.</summary>
    public string? ReplayPath { get; init; }

    /// <summary>Whether it is the image of a name, in whichever case.</summary>
    internal bool IsCalled(string? name) => string.Equals(Name, name, StringComparison.OrdinalIgnoreCase);

    /// <summary>Checks it, and that it goes with others.</summary>
    /// <exception cref="GuestMemoryException">ValueNotSupported; NameInUse: another one has its name, or its socket.</exception>
    internal void Check(IEnumerable<UffdImageOptions> others)
    {
        // What came as JSON may have a null everywhere.
        UffdVmName.Check(Name ?? "", "an image");
        if (string.IsNullOrEmpty(SocketPath) || string.IsNullOrEmpty(MemoryPath) || LayerPaths.Any(string.IsNullOrEmpty))
            throw new GuestMemoryException(GuestMemoryError.ValueNotSupported, $"The image '{Name}' needs the path of its socket and that of its file, and each layer a path.");
        foreach (var other in others)
        {
            if (IsCalled(other.Name)) throw new GuestMemoryException(GuestMemoryError.NameInUse, $"The handler has an image '{other.Name}' already. Give another name.");
            if (SocketPath == other.SocketPath) throw new GuestMemoryException(GuestMemoryError.NameInUse, $"The images '{other.Name}' and '{Name}' cannot have the same socket {SocketPath}: a VM's memory is that of the image whose socket it connects to.");
            if (RecordPath is not null && RecordPath == other.RecordPath) throw new GuestMemoryException(GuestMemoryError.NameInUse, $"The images '{other.Name}' and '{Name}' cannot write the same record {RecordPath}: a record is of one image.");
        }
    }
}
