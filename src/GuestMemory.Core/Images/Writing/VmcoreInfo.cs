namespace GuestMemory.Core.Images;

/// <summary>
/// Finds the VMCOREINFO of a Linux guest while its memory is read (the kernel's <c>Documentation/admin-guide/kdump/vmcoreinfo.rst</c>): a page that begins with the text that a debugger of a
/// crash dump needs, lines of NAME=VALUE.
/// </summary>
internal sealed class VmcoreInfo
{
    /// <summary>What it has at most: a page, of the smallest size.</summary>
    public const int MaxLength = 4096;

    private static ReadOnlySpan<byte> Begin => "OSRELEASE="u8;

    /// <summary>The text, of the first place that has one; null before one was seen.</summary>
    public byte[]? Text { get; private set; }

    /// <summary>Whether the text says something of a name, such as <c>NUMBER(phys_base)</c>.</summary>
    public bool Says(ReadOnlySpan<byte> name) => Text.AsSpan().IndexOf(name) >= 0;

    /// <summary>Looks at a piece of memory at a guest address, which has whole pages.</summary>
    public void Look(ulong address, ReadOnlySpan<byte> piece)
    {
        if (Text is not null || address % MaxLength != 0) return;
        for (var at = 0; at < piece.Length; at += MaxLength)
        {
            if (!piece[at..].StartsWith(Begin)) continue;
            var page = piece[at..Math.Min(at + MaxLength, piece.Length)];
            var end = page.IndexOf((byte)0);
            var text = end < 0 ? page : page[..end];
            // A text in a file or in a log that begins so is none.
            if (text.IndexOf("\nPAGESIZE="u8) < 0 || text.IndexOf("\nSYMBOL("u8) < 0 || text.ContainsAnyExceptInRange((byte)'\n', (byte)'~')) continue;
            Text = text.ToArray();
            return;
        }
    }
}
