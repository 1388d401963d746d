// Restores the memory of a VM from a snapshot, page by page as it is touched, and shows what changed since: what
// examples/Restore-Snapshot.ps1 does, on GuestMemory.Core alone. An argument is the path of a memory image, which is only read;
// without one an image is made. The exit code is 0 when every byte was right, else 1.

using System.Security.Cryptography;
using GuestMemory.Core;
using GuestMemory.Core.Images;
using GuestMemory.Core.Userfault;
using SnapshotRestore;

const ulong MiB = 1UL << 20;
const ulong GiB = 1UL << 30;

var directory = Directory.CreateTempSubdirectory("snapshot-restore-").FullName;
try
{
    // The memory of a PC: from 0 up to the hole for its devices, the rest from 4 GiB on. Behind each other they are the image.
    var (image, size, hole) = args.Length > 0
        ? (Path.GetFullPath(args[0]), ImageSize(args[0]), 3 * GiB)
        : (Path.Combine(directory, "vm.mem"), 64 * MiB, 48 * MiB);
    if (args.Length == 0) MakeImage(image, size, hole);
    Restore(image, size, hole, directory);
    Console.WriteLine($"OK: {size} bytes restored through page faults, byte for byte.");
    return 0;
}
catch (Exception exception) when (exception is GuestMemoryException or IOException or UnauthorizedAccessException or InvalidDataException)
{
    Console.Error.WriteLine($"FAILED: {exception.Message}");
    return 1;
}
finally
{
    Directory.Delete(directory, recursive: true);
}

static void Restore(string image, ulong size, ulong hole, string directory)
{
    var expected = HashFile(image);
    Step("Image", $"{image}, {size} bytes, SHA-256 {Convert.ToHexStringLower(expected)[..16]}...");

    // The handler, which is disposed first, must be gone before the memory that it serves.
    using var guest = new Guest(size, hole, (bytes, _) => new MmapRegionBuilder(bytes).WithDirtyTracking());
    var socket = Path.Combine(directory, "uffd.sock");
    using var handler = UffdHandler.Start(new UffdHandlerOptions { SocketPath = socket, MemoryPath = image, Strategy = UffdStrategy.OnDemand });
    Step("Handler", $"listens at {socket}");

    UffdRegistration.Connect(socket, guest.Memory);
    Step("Connect", $"fresh memory: {string.Join(", ", guest.Memory.Regions)}");

    Require(HashMemory(guest.Memory).AsSpan().SequenceEqual(expected), "The restored memory is not what is in the image.");
    Step("Restore", "every byte read through page faults, SHA-256 as in the image");

    Change(guest.Memory);
    var dirty = guest.Memory.Regions.SelectMany(region => region.GetDirtyBitmap().GetRanges()).ToArray();
    Step("Write", $"dirty now: {string.Join(", ", dirty.Select(range => $"0x{range.Address:x}-0x{range.LastAddress:x}"))}");

    var diff = RawImage.WriteDirty(guest.Memory, Path.Combine(directory, "diff.mem"), force: false);
    Step("Diff", $"{diff.BytesWritten} of {diff.Size} bytes written to {diff.Path}");

    CheckDiff(guest.Memory, image, diff.Path, dirty, hole);
    Require(HashFile(image).AsSpan().SequenceEqual(expected), "The image was changed.");
    Step("Check", "image and diff together are the memory, byte for byte");

    handler.Stop();
    Step("Figures", $"{handler.FaultCount} faults served, {handler.ByteCount} bytes copied; "
        + $"latency p50 {handler.LatencyP50.TotalMicroseconds:0.0} us, p99 {handler.LatencyP99.TotalMicroseconds:0.0} us");
    Require(handler.Error is null, $"The handler reports: {handler.Error}");
    var pages = size / (ulong)Environment.SystemPageSize;
    Require((ulong)handler.FaultCount == pages, $"The handler served {handler.FaultCount} faults and not one for each of the {pages} pages.");
}

// Lays the diff over a private mapping of the image, which leaves the file alone, and compares that with the memory.
static void CheckDiff(GuestMemoryMmap memory, string image, string diff, AddressRange[] dirty, ulong hole)
{
    using var whole = new Guest(memory.Size, hole, (bytes, offset) => new MmapRegionBuilder(bytes).WithFile(image, offset).WithFlags(MapFlags.Private));
    using var change = new Guest(memory.Size, hole, (bytes, offset) => new MmapRegionBuilder(bytes).WithFile(diff, offset).WithProtection(MemoryProtection.Read));
    foreach (var range in dirty)
    {
        var bytes = new byte[range.Size];
        change.Memory.ReadExact(new GuestAddress(range.Address), bytes);
        whole.Memory.WriteExact(new GuestAddress(range.Address), bytes);
    }

    Require(HashMemory(whole.Memory).AsSpan().SequenceEqual(HashMemory(memory)), "Image and diff together are not the memory.");
}

// Three quarters of every MiB are random, the same in every run; the rest stays zero.
static void MakeImage(string path, ulong size, ulong hole)
{
    using var source = new Guest(size, hole, (bytes, _) => new MmapRegionBuilder(bytes));
    var random = new Random(1);
    var bytes = new byte[MiB / 4 * 3];
    foreach (var region in source.Memory.Regions)
    {
        for (ulong offset = 0; offset < region.Size; offset += MiB)
        {
            random.NextBytes(bytes);
            source.Memory.WriteExact(new GuestAddress(region.GuestAddress + offset), bytes);
        }
    }

    RawImage.WriteFull(source.Memory, path, overwrite: false);
}

// What a guest does: a little text in one page, and a longer write across several.
static void Change(GuestMemoryMmap memory)
{
    var random = new Random(2);
    foreach (var region in memory.Regions)
    {
        memory.WriteExact(new GuestAddress(region.GuestAddress + 16), "This page changed after the restore."u8);
        var bytes = new byte[Math.Min(10_000, region.Size / 2)];
        random.NextBytes(bytes);
        memory.WriteExact(new GuestAddress(region.GuestAddress + region.Size / 2), bytes);
    }
}

static byte[] HashMemory(GuestMemoryMmap memory)
{
    using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
    var buffer = new byte[MiB];
    foreach (var region in memory.Regions)
    {
        for (ulong offset = 0; offset < region.Size; offset += MiB)
        {
            var piece = buffer.AsSpan(0, (int)Math.Min(MiB, region.Size - offset));
            memory.ReadExact(new GuestAddress(region.GuestAddress + offset), piece);
            hash.AppendData(piece);
        }
    }

    return hash.GetHashAndReset();
}

static byte[] HashFile(string path)
{
    using var file = File.OpenRead(path);
    return SHA256.HashData(file);
}

static ulong ImageSize(string path)
{
    using var file = File.OpenHandle(path);
    var size = (ulong)RandomAccess.GetLength(file);
    Require(size > 0 && size % HostPage.Size == 0, $"{path} cannot be a memory image: {size} bytes are not a number of whole pages of {HostPage.Size} bytes.");
    return size;
}

static void Require(bool condition, string otherwise)
{
    if (!condition) throw new InvalidDataException(otherwise);
}

static void Step(string name, string text) => Console.WriteLine($"{name,-9}{text}");
