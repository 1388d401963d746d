using System.Diagnostics;

namespace GuestMemory.Core.Tests;

/// <summary>Which pages of a layer are those of the VM: by the bits beside it, or by its holes where these can be trusted.</summary>
public sealed class LayerTests : IDisposable
{
    private const int Pages = 1024;
    private readonly TestFolder _folder = new();
    private readonly List<string> _mounts = [];

    public void Dispose()
    {
        foreach (var mount in _mounts) Host.Until(() => Run("umount", mount) == 0);
        _folder.Dispose();
    }

    /// <summary>There 2 MiB are the least that a file has, zeros that were never written among them, which would hide the base.</summary>
    [UffdFact]
    public void ADiffOnAFileSystemOfHugePagesHidesNothingOfItsBase()
    {
        var folder = MountHuge();
        _folder.WriteImage("image", Pages);
        var diff = WriteDiff(Path.Combine(folder, "diff"), 11, 600);
        using (var handler = Start(diff)) AssertMemory(handler, 11, 600);
        File.Delete(diff + ".dirty");
        var error = Refused(diff);
        Assert.Equal(GuestMemoryError.LayerUntrusted, error.Error);
        Assert.Contains($"{diff} lies on a file system that keeps its holes in pieces of 2097152 bytes", error.Message, StringComparison.Ordinal);
    }

    /// <summary>A copy that was made without holes: its zeros are not the VM's.</summary>
    [UffdFact]
    public void ALayerWithoutHolesIsServedByItsBitsAndElseRefused()
    {
        _folder.WriteImage("image", Pages);
        var diff = WriteDiff(_folder["diff"], 11);
        Assert.Equal(0, Run("cp", "--sparse=never", diff, _folder["copy"]));
        Assert.Equal(0, Run("cp", diff + ".dirty", _folder["copy.dirty"]));
        using (var handler = Start(_folder["copy"])) AssertMemory(handler, 11);
        File.Delete(_folder["copy.dirty"]);
        var error = Refused(_folder["copy"]);
        Assert.Equal(GuestMemoryError.LayerUntrusted, error.Error);
        Assert.Contains("has no hole", error.Message, StringComparison.Ordinal);
    }

    /// <summary>Zeros that a copy made holes of are still the VM's.</summary>
    [UffdFact]
    public void APageOfZerosThatBecameAHoleIsStillThere()
    {
        _folder.WriteImage("image", Pages);
        var diff = WriteDiff(_folder["diff"], 11, -12);
        Assert.Equal(0, Run("cp", "--sparse=always", diff, _folder["copy"]));
        Assert.Equal(0, Run("cp", diff + ".dirty", _folder["copy.dirty"]));
        using var handler = Start(_folder["copy"]);
        AssertMemory(handler, 11, -12);
    }

    [UffdFact]
    public void BitsOfAnotherDiffAreRefused()
    {
        _folder.WriteImage("image", Pages);
        var diff = WriteDiff(_folder["diff"], 11);
        // As another program would, which knows nothing of them.
        File.SetLastWriteTimeUtc(diff, File.GetLastWriteTimeUtc(diff + ".dirty").AddSeconds(1));
        var error = Refused(diff);
        Assert.Equal(GuestMemoryError.LayerUntrusted, error.Error);
        Assert.Contains($"{diff} was written after {diff}.dirty", error.Message, StringComparison.Ordinal);
    }

    [UffdFact]
    public void BitsThatAreDamagedAreRefused()
    {
        _folder.WriteImage("image", Pages);
        var diff = WriteDiff(_folder["diff"], 11);
        var good = File.ReadAllBytes(diff + ".dirty");
        Assert.Equal(32 + (Pages / 8), good.Length);
        foreach (var at in new[] { 0, 8, 16, 20, 33, good.Length - 1 })
        {
            var bad = (byte[])good.Clone();
            bad[at] ^= 0x10;
            File.WriteAllBytes(diff + ".dirty", bad);
            Assert.Equal(GuestMemoryError.InvalidImage, Refused(diff).Error);
        }

        File.WriteAllBytes(diff + ".dirty", good[..^1]);
        Assert.Equal(GuestMemoryError.InvalidImage, Refused(diff).Error);
    }

    /// <summary>A diff may be written into a diff of before: both together are one.</summary>
    [UffdFact]
    public void ADiffThatIsWrittenIntoAnotherAddsItsBits()
    {
        _folder.WriteImage("image", Pages);
        var diff = WriteDiff(_folder["diff"], 11, -12);
        WriteDiff(diff, 500);
        using var handler = Start(diff);
        AssertMemory(handler, 11, -12, 500);
    }

    /// <summary>Where a whole image takes the place of a diff, nothing tells of a diff any more; a file of somebody else's stays.</summary>
    [UffdFact]
    public void AWholeImageHasNoBits()
    {
        var diff = WriteDiff(_folder["diff"], 11);
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        RawImage.WriteFull(memory, diff, overwrite: true);
        Assert.False(File.Exists(diff + ".dirty"));
        File.WriteAllText(diff + ".dirty", "another's");
        RawImage.WriteFull(memory, diff, overwrite: true);
        Assert.Equal("another's", File.ReadAllText(diff + ".dirty"));
        // Into a base pages are written, which stays one.
        File.Delete(diff + ".dirty");
        WriteDiff(diff, 7);
        Assert.False(File.Exists(diff + ".dirty"));
    }

    private string MountHuge()
    {
        var folder = Directory.CreateDirectory(_folder["huge"]).FullName;
        Assert.SkipUnless(Run("mount", "-t", "tmpfs", "-o", "huge=always,size=64m", "none", folder) == 0, "a tmpfs with huge=always cannot be mounted: this needs root, and a kernel with transparent huge pages");
        _mounts.Add(folder);
        return folder;
    }

    /// <summary>Writes pages of a memory as a diff; a negative one is of zeros.</summary>
    private static string WriteDiff(string path, params int[] pages)
    {
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).WithDirtyTracking().Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        var page = new byte[4096];
        foreach (var number in pages)
        {
            page.AsSpan().Clear();
            if (number >= 0) TestFolder.Fill(page, number + 5000);
            memory.Write(new GuestAddress((ulong)Math.Abs(number) * 4096), page);
        }

        RawImage.WriteDirty(memory, path, force: false);
        return path;
    }

    private GuestMemoryException Refused(string layer) => Assert.Throws<GuestMemoryException>(() => Start(layer));

    private UffdHandler Start(string layer) => UffdHandler.Start(new UffdHandlerOptions
    {
        SocketPath = _folder["h.sock"], MemoryPath = _folder["image"], Strategy = UffdStrategy.OnDemand, LayerPaths = [layer],
    });

    private static void AssertMemory(UffdHandler handler, params int[] ofLayer)
    {
        using var region = new GuestRegionMmap(new MmapRegionBuilder(Pages * 4096).Build(), new GuestAddress(0));
        var memory = GuestMemoryMmap.FromRegions([region]);
        UffdRegistration.Connect(handler.SocketPath, memory);
        var page = new byte[4096];
        var expected = new byte[4096];
        for (var i = 0; i < Pages; i++)
        {
            memory.ReadExact(new GuestAddress((ulong)i * 4096), page);
            if (ofLayer.Contains(-i) && i > 0) expected.AsSpan().Clear();
            else TestFolder.Fill(expected, ofLayer.Contains(i) ? i + 5000 : i);
            Assert.True(expected.AsSpan().SequenceEqual(page), $"page {i}");
        }
    }

    private static int Run(string program, params string[] arguments)
    {
        using var process = Process.Start(new ProcessStartInfo(program, arguments) { UseShellExecute = false, RedirectStandardError = true })!;
        process.WaitForExit();
        return process.ExitCode;
    }
}
