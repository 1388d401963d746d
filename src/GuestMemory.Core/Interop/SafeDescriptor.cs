using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>A file descriptor that this process owns: a userfaultfd, socket, eventfd or memfd. Closed once, when the last reference is released.</summary>
public sealed partial class SafeDescriptor : SafeHandle
{
    private SafeDescriptor()
        : base(-1, ownsHandle: true)
    {
    }

    /// <summary>Takes ownership of <paramref name="descriptor"/>.</summary>
    public SafeDescriptor(int descriptor)
        : this() => SetHandle(descriptor);

    /// <inheritdoc/>
    public override bool IsInvalid => handle < 0;

    /// <summary>The descriptor's number. Valid only while the caller keeps this object referenced or leased.</summary>
    internal int Number => (int)handle;

    /// <inheritdoc/>
    protected override bool ReleaseHandle() => close((int)handle) == 0;

    [LibraryImport("libc")]
    private static partial int close(int fd);
}
