using System.Globalization;
using System.Text;

namespace GuestMemory.Core.Images;

/// <summary>
/// Finds the VMCOREINFO of a Linux guest while its memory is read (the kernel's <c>Documentation/admin-guide/kdump/vmcoreinfo.rst</c>): a page that begins with the text that a debugger of a
/// crash dump needs, lines of NAME=VALUE.
/// </summary>
internal sealed class VmcoreInfo
{
    /// <summary>What it has at most: a page, of the smallest size.</summary>
    public const int MaxLength = 4096;

    private const ulong Piece = 2 << 20;

    // No image of a kernel is as long.
    private const ulong MaxImage = 512 << 20;

    // __START_KERNEL_map of x86-64.
    private const ulong KernelMap = 0xffffffff80000000;

    private static ReadOnlySpan<byte> Begin => "OSRELEASE="u8;

    /// <summary>The text, of the first place that has one; null before one was seen.</summary>
    public byte[]? Text { get; private set; }

    /// <summary>Whether the guest is of aarch64; null where the text does not say.</summary>
    public bool? IsArm64 => Value("NUMBER(kimage_voffset)") is not null ? true : Value("NUMBER(phys_base)") is not null ? false : null;

    /// <summary>
    /// Where the kernel's image lies, as far as the text has symbols of it: its guest address, its virtual address and its length, in pieces of 2 MiB; null where
    /// the text does not say. The root of the kernel's page tables is in it, by which a debugger finds everything else.
    /// </summary>
    public (ulong Address, ulong Virtual, ulong Size)? KernelImage()
    {
        if (Symbol("_stext") is not { } begin || Offset() is not { } offset) return null;
        var last = Symbols().Where(symbol => symbol >= begin && symbol - begin < MaxImage).DefaultIfEmpty(begin).Max();
        var from = begin & ~(Piece - 1);
        return (unchecked(from - offset), from, (last & ~(Piece - 1)) + Piece - from);
    }

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

    // What a virtual address of the image has more than the guest address.
    private ulong? Offset()
    {
        if (Value("NUMBER(phys_base)") is { } text && long.TryParse(text, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out var moved)) return unchecked(KernelMap - (ulong)moved);
        return Value("NUMBER(kimage_voffset)") is { } virt && virt.StartsWith("0x", StringComparison.Ordinal) && ulong.TryParse(virt.AsSpan(2), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out var offset) ? offset : null;
    }

    private ulong? Symbol(string name) => ulong.TryParse(Value($"SYMBOL({name})"), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out var address) ? address : null;

    private IEnumerable<ulong> Symbols() => Lines().Where(static line => line.StartsWith("SYMBOL(", StringComparison.Ordinal))
        .Select(static line => ulong.TryParse(line.AsSpan(line.IndexOf('=') + 1), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out var address) ? address : 0);

    private string? Value(string name) => Array.Find(Lines(), line => line.Length > name.Length && line[name.Length] == '=' && line.StartsWith(name, StringComparison.Ordinal))?[(name.Length + 1)..];

    private string[] Lines() => Encoding.ASCII.GetString(Text ?? []).Split('\n');
}
