using System.Buffers.Binary;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Images;

/// <summary>
/// A file in makedumpfile's flattened form, which QEMU's kdump formats have, too: a header of 4096 bytes ("makedumpfile", type, version), then records,
/// each with its offset in the file that it stands for and its length (two big-endian numbers of 8 bytes), up to one of -1. A later record overwrites
/// an earlier one; where there is none are zeros.
/// </summary>
internal sealed class FlattenedFile
{
    private const ulong HeaderSize = 4096;
    private const ulong RecordHeaderSize = 16;
    private const ulong MaxLength = long.MaxValue / 2;

    // 24 bytes each are kept.
    private const int MaxRecords = 1 << 24;

    private readonly Record[] _records;

    private FlattenedFile(Record[] records)
    {
        _records = records;
        Length = records.Length == 0 ? 0 : records[^1].End;
    }

    /// <summary>The length of the file that it stands for.</summary>
    public ulong Length { get; }

    private static ReadOnlySpan<byte> Signature => "makedumpfile\0\0\0\0"u8;

    /// <summary>Reads where the records are; null where the file is no such one.</summary>
    /// <exception cref="GuestMemoryException">InvalidImage; ImageUnsupported: another version.</exception>
    public static FlattenedFile? TryOpen(SafeFileHandle file, ulong length, string path, CancellationToken cancellation)
    {
        Span<byte> header = stackalloc byte[32];
        if (ImageBytes.TryRead(file, 0, header, out _) < header.Length || !header[..16].SequenceEqual(Signature)) return null;
        var (type, version) = (BinaryPrimitives.ReadInt64BigEndian(header[16..]), BinaryPrimitives.ReadInt64BigEndian(header[24..]));
        if (type != 1 || version != 1) throw MemoryImage.Unsupported(path, $"a flattened dump of type {type}, version {version}");
        var records = new List<Record>();
        for (var at = HeaderSize; ; )
        {
            cancellation.ThrowIfCancellationRequested();
            var begin = header[..(int)RecordHeaderSize];
            if (ImageBytes.TryRead(file, at, begin, out _) < begin.Length) throw MemoryImage.Invalid(path, "its last record is missing; the dump may not have been completed");
            var (offset, size) = (BinaryPrimitives.ReadInt64BigEndian(begin), BinaryPrimitives.ReadInt64BigEndian(begin[8..]));
            if (offset == -1 && size == -1) break;
            at += RecordHeaderSize;
            if (offset < 0 || size <= 0 || (ulong)size > length - Math.Min(at, length) || (ulong)offset > MaxLength - (ulong)size)
                throw MemoryImage.Invalid(path, $"the record at offset 0x{at - RecordHeaderSize:x} is not in the file");
            if (records.Count == MaxRecords) throw MemoryImage.Unsupported(path, $"a flattened dump of more than {MaxRecords} records; 'makedumpfile -R' makes an ordinary dump of it");
            records.Add(new Record((ulong)offset, (ulong)size, at));
            at += (ulong)size;
        }

        return new FlattenedFile(InOrder(records));
    }

    public int TryRead(SafeFileHandle file, ulong offset, Span<byte> buffer, out int error)
    {
        error = 0;
        var wanted = (int)Math.Min((ulong)buffer.Length, offset < Length ? Length - offset : 0);
        var done = 0;
        for (var i = First(offset); done < wanted;)
        {
            var at = offset + (ulong)done;
            if (i < 0 || _records[i].End <= at)
            {
                // The next one may begin here; what lies before it is zeros.
                var next = i + 1 < _records.Length ? _records[i + 1].Start : Length;
                if (next > at)
                {
                    var hole = (int)Math.Min(next - at, (ulong)(wanted - done));
                    buffer.Slice(done, hole).Clear();
                    done += hole;
                }

                i++;
                continue;
            }

            var inside = at - _records[i].Start;
            var part = (int)Math.Min(_records[i].Size - inside, (ulong)(wanted - done));
            var count = ImageBytes.TryRead(file, _records[i].FileOffset + inside, buffer.Slice(done, part), out error);
            done += count;
            if (error != 0) return done;
        }

        if (done < buffer.Length) error = Errno.EIO;
        return done;
    }

    /// <summary>The last record that begins at or before an offset; -1 where none does.</summary>
    private int First(ulong offset)
    {
        var (low, high) = (0, _records.Length);
        while (low < high)
        {
            var middle = (low + high) / 2;
            if (_records[middle].Start <= offset) low = middle + 1;
            else high = middle;
        }

        return low - 1;
    }

    /// <summary>The records in the order of their places, each cut to what no later one overwrites.</summary>
    private static Record[] InOrder(List<Record> records)
    {
        Record[] sorted = [.. records.OrderBy(static record => record.Start)];
        var overlaps = false;
        for (var i = 1; i < sorted.Length && !overlaps; i++) overlaps = sorted[i].Start < sorted[i - 1].End;
        if (!overlaps) return sorted;

        // A sweep over the places. The later a record is in the file the more it counts.
        var pieces = new List<Record>();
        var active = new PriorityQueue<Record, ulong>();
        ulong at = 0;
        for (var next = 0; next < sorted.Length || active.Count > 0;)
        {
            if (active.Count == 0) at = Math.Max(at, sorted[next].Start);
            for (; next < sorted.Length && sorted[next].Start <= at; next++) active.Enqueue(sorted[next], ulong.MaxValue - sorted[next].FileOffset);
            while (active.TryPeek(out var ended, out _) && ended.End <= at) active.Dequeue();
            if (!active.TryPeek(out var top, out _)) continue;
            var end = next < sorted.Length ? Math.Min(top.End, sorted[next].Start) : top.End;
            pieces.Add(new Record(at, end - at, top.FileOffset + (at - top.Start)));
            at = end;
        }

        return [.. pieces];
    }

    private readonly record struct Record(ulong Start, ulong Size, ulong FileOffset)
    {
        public ulong End => Start + Size;
    }
}
