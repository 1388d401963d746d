namespace GuestMemory.Core.Tests;

/// <summary>What tests of the VMs of a handler have: a folder, the handler, in this process or in one of its own, and the memory of the VMs.</summary>
public abstract class VmFixture(RuntimeFolder runtime) : IDisposable
{
    private readonly List<UffdHandler> _handlers = [];

    protected TestFolder Folder { get; } = new();

    protected RuntimeFolder Runtime => runtime;

    /// <summary>What the VMs have, in the order in which it was made.</summary>
    protected List<GuestRegionMmap> Regions { get; } = [];

    public void Dispose()
    {
        foreach (var region in Regions) region.Dispose();
        foreach (var handler in _handlers)
        {
            handler.Stop();
            handler.Dispose();
        }

        runtime.StopAll();
        foreach (var log in Directory.GetFiles(runtime.Folder.Path, "*.log")) File.Delete(log);
        Folder.Dispose();
        GC.SuppressFinalize(this);
    }

    /// <summary>Starts a handler that ends with the test.</summary>
    protected UffdHandler Start(bool process, UffdHandlerOptions options)
    {
        var handler = process ? UffdHandler.StartProcess(options) : UffdHandler.Start(options);
        _handlers.Add(handler);
        return handler;
    }

    protected GuestRegionMmap Region(MmapRegionBuilder builder)
    {
        ArgumentNullException.ThrowIfNull(builder);
        var region = new GuestRegionMmap(builder.Build(), new GuestAddress(0));
        Regions.Add(region);
        return region;
    }
}
