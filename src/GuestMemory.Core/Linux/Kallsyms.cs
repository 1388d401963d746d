using System.Buffers.Binary;
using System.Runtime.InteropServices;
using System.Text;

namespace GuestMemory.Core.Linux;

/// <summary>The symbols of a kernel, out of its own compressed tables (kernel/kallsyms.c), which stay compressed here.</summary>
internal sealed class Kallsyms
{
    /// <summary>More symbols than any kernel has.</summary>
    public const int MaxCount = 1 << 22;

    // KSYM_NAME_LEN is 512, and the letter of the type stands before the name.
    private const int MaxName = 1024;

    private readonly byte[] _names;
    private readonly int[] _starts;
    private readonly string[] _tokens;
    private readonly int[] _offsets;
    private readonly ulong? _relativeBase;
    private readonly ulong _offsetsAt;
    private readonly bool _percpu;

    private Kallsyms(byte[] names, int[] starts, string[] tokens, int[] offsets, ulong? relativeBase, ulong offsetsAt)
    {
        (_names, _starts, _tokens, _offsets, _relativeBase, _offsetsAt) = (names, starts, tokens, offsets, relativeBase, offsetsAt);
        // On x86-64 before 6.15 an offset that is not negative is that of a variable of each processor, of which there are few.
        _percpu = relativeBase is not null && offsets.Count(static offset => offset < 0) > offsets.Length / 2;
    }

    /// <summary>The number of symbols.</summary>
    public int Count => _starts.Length;

    /// <summary>Reads the tables.</summary>
    /// <exception cref="GuestMemoryException">InvalidKernelData: they contradict themselves or leave the memory. As for a read.</exception>
    public static Kallsyms Read(GuestMemoryMmap memory, KallsymsPlaces places, CancellationToken cancellation)
    {
        var count = KernelData.ReadUInt32(memory, places.Count, "The number of kernel symbols", cancellation);
        if (count is 0 or > MaxCount) throw KernelData.Invalid($"The kernel cannot have {count} symbols.");
        var tokens = ReadTokens(KernelData.Read(memory, places.TokenTable, Between(places.TokenTable, places.TokenIndex, "The table of tokens"), "The table of tokens", cancellation),
            KernelData.Read(memory, places.TokenIndex, 512, "The index of tokens", cancellation));
        var names = KernelData.Read(memory, places.Names, Between(places.Names, places.TokenTable, "The table of names"), "The table of names", cancellation);
        var offsets = MemoryMarshal.Cast<byte, int>(KernelData.Read(memory, places.Offsets, 4L * count, "The table of symbol addresses", cancellation)).ToArray();
        ulong? relativeBase = places.RelativeBase is { } at ? KernelData.ReadUInt64(memory, at, "The base of the symbol addresses", cancellation) : null;
        return new Kallsyms(names, Walk(names, (int)count) ?? throw KernelData.Invalid($"The names of the {count} kernel symbols pass the end of their table."), tokens, offsets, relativeBase, places.Offsets + places.Delta);
    }

    /// <summary>The addresses of symbols by their names; those that there are. Where several have a name, the first.</summary>
    public Dictionary<string, ulong> Find(params ReadOnlySpan<string> names)
    {
        var wanted = new HashSet<string>(StringComparer.Ordinal);
        foreach (var name in names) wanted.Add(name);
        var lookup = wanted.GetAlternateLookup<ReadOnlySpan<char>>();
        var found = new Dictionary<string, ulong>(StringComparer.Ordinal);
        Span<char> text = stackalloc char[MaxName];
        for (var i = 0; i < Count && found.Count < wanted.Count; i++)
        {
            var length = Expand(i, text);
            if (length > 1 && lookup.TryGetValue(text[1..length], out var name)) found.TryAdd(name, Address(i));
        }

        return found;
    }

    /// <summary>All symbols, in ascending order of their addresses, as the kernel has them.</summary>
    public IEnumerable<GuestSymbol> All()
    {
        var text = new char[MaxName];
        for (var i = 0; i < Count; i++)
        {
            var length = Expand(i, text);
            if (length > 1) yield return new GuestSymbol(new string(text, 1, length - 1), Address(i), text[0]);
        }
    }

    /// <summary>Where each of so many names begins; null where they are not all there.</summary>
    public static int[]? Walk(ReadOnlySpan<byte> names, int count)
    {
        // Each has a length at least.
        if (count > names.Length) return null;
        var starts = new int[count];
        var at = 0;
        for (var i = 0; i < count; i++)
        {
            starts[i] = at;
            if (Next(names, at) is not { } next) return null;
            at = next;
        }

        return starts;
    }

    /// <summary>Where the name behind another one begins; null where that one passes the end.</summary>
    public static int? Next(ReadOnlySpan<byte> names, int at) => Length(names, ref at) is { } length and > 0 && length <= names.Length - at ? at + length : null;

    /// <summary>The texts of the tokens.</summary>
    public static string[] ReadTokens(ReadOnlySpan<byte> table, ReadOnlySpan<byte> index)
    {
        var tokens = new string[256];
        for (var i = 0; i < tokens.Length; i++)
        {
            var start = BinaryPrimitives.ReadUInt16LittleEndian(index[(2 * i)..]);
            var length = start < table.Length ? table[start..].IndexOf((byte)0) : -1;
            if (length is < 0 or > MaxName) throw KernelData.Invalid($"Token {i} of the kernel's symbol names leaves its table.");
            // What would control a terminal is none.
            tokens[i] = KernelData.Printable(Encoding.Latin1.GetString(table.Slice(start, length)));
        }

        return tokens;
    }

    private static long Between(ulong start, ulong end, string what) => end > start && end - start <= KernelData.MaxSize
        ? (long)(end - start)
        : throw KernelData.Invalid($"{what} of the kernel's symbols (guest address 0x{start:x}) does not end before 0x{end:x}.");

    /// <summary>The tokens of a name: one byte, or two where the first has bit 7 set (since 6.1).</summary>
    private static int? Length(ReadOnlySpan<byte> names, ref int at)
    {
        if (at >= names.Length) return null;
        int length = names[at++];
        if (length < 0x80) return length;
        if (at >= names.Length) return null;
        return (length & 0x7f) | names[at++] << 7;
    }

    private int Expand(int symbol, Span<char> text)
    {
        var at = _starts[symbol];
        var length = Length(_names, ref at) ?? 0;
        var done = 0;
        foreach (var token in _names.AsSpan(at, length))
        {
            if (!_tokens[token].TryCopyTo(text[done..])) return 0;
            done += _tokens[token].Length;
        }

        return done;
    }

    private ulong Address(int symbol)
    {
        var offset = _offsets[symbol];
        if (_relativeBase is not { } start) return _offsetsAt + (4UL * (ulong)symbol) + (ulong)(long)offset;
        if (!_percpu) return start + (uint)offset;
        return offset >= 0 ? (ulong)offset : start - 1 - (ulong)(long)offset;
    }
}
