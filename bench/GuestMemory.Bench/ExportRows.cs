using GuestMemory.Core;
using GuestMemory.Core.Images;

namespace GuestMemory.Bench;

/// <summary>Exports to tmpfs: of the dirty pages beside image-write.c, and of all that is not zero beside cp.</summary>
internal sealed class ExportRows : RowSet, IDisposable
{
    private const ulong Size = 1UL << 30;
    private const ulong Page = 4096;
    private const int DirtyPercent = 10;
    private const string Copying = "cp --sparse=always of such an image, dense, in the page cache";

    private readonly string _folder = Directory.CreateTempSubdirectory("gm-export-").FullName;
    private readonly GuestMemoryMmap _memory = GuestMemoryMmap.FromRegions([new GuestRegionMmap(new MmapRegionBuilder(Size).WithDirtyTracking().Build(), default, "bench")]);
    private readonly string _output;
    private readonly string _image;

    public ExportRows()
    {
        if (Directory.Exists("/dev/shm"))
        {
            Directory.Delete(_folder);
            _folder = Directory.CreateDirectory(Path.Combine("/dev/shm", Path.GetRandomFileName())).FullName;
        }

        _output = Path.Combine(_folder, "output");
        _image = Path.Combine(_folder, "image");
        AppDomain.CurrentDomain.ProcessExit += (_, _) => Dispose();
        // Every page is there; a tenth is not zero.
        var zeros = new byte[1 << 20];
        for (ulong at = 0; at < Size; at += (ulong)zeros.Length) _memory.WriteExact(new GuestAddress(at), zeros);
        Mark();
        using var file = File.Create(_image);
        var buffer = new byte[1 << 20];
        for (ulong at = 0; at < Size; at += (ulong)buffer.Length)
        {
            _memory.ReadExact(new GuestAddress(at), buffer);
            file.Write(buffer);
        }
    }

    public override string Name => "export";

    public override string Setup => "1 GiB of anonymous memory, of which a tenth of the pages, at random, is not zero and dirty; to tmpfs";

    public override string Program => "image-write";

    public override string[] Filters => [""];

    public override string Mebibytes => $"{Size >> 20}";

    public override int Repetitions => 3;

    public override Row[] Rows { get; } =
    [
        new("export the dirty pages to a sparse file; C packs them by pwritev, 1024 runs a call", "\"diff_packed\"", "1.15", 1),
        new("the same; C writes each run to its place by pwrite", "\"diff_pwrite\"", "", 1),
        new(Copying, null, "", 1),
        new("export the whole memory as a sparse file; cp copies an image", null, "1.15", 1, Copying),
        new("the same with its SHA-256", null, "", 1, Copying),
        new("the same as LiME", null, "", 1, Copying),
    ];

    protected override int WarmUps => 1;

    public void Dispose()
    {
        if (Directory.Exists(_folder)) Directory.Delete(_folder, recursive: true);
    }

    protected override double[] Measure()
    {
        var diff = Time(Prepare, () => RawImage.WriteDirty(_memory, _output, force: true));
        return
        [
            diff,
            diff,
            Time(Prepare, () => BenchTools.Execute("cp", "--sparse=always", _image, _output)),
            Time(Prepare, () => RawImage.WriteFull(_memory, _output, overwrite: true)),
            Time(Prepare, () => RawImage.WriteFull(_memory, _output, overwrite: true, digest: true)),
            Time(Prepare, () => LimeWriter.Write(_memory, _output, overwrite: true)),
        ];
    }

    private void Prepare()
    {
        foreach (var file in (string[])[_output, _output + ".dirty", _output + ".sha256"]) File.Delete(file);
        Mark();
    }

    private void Mark()
    {
        var random = 88172645463325252UL;
        for (ulong i = 0; i < Size / Page / 100 * DirtyPercent; i++)
        {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            _memory.Write(new GuestAddress(random % (Size / Page) * Page), BitConverter.GetBytes(random | 1));
        }
    }
}
