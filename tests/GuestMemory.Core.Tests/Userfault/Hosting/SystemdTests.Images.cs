namespace GuestMemory.Core.Tests;

/// <content>VMs and the files that they were given.</content>
public sealed partial class SystemdTests
{
    /// <summary>A path may name another file by the time of a restart; the VMs' memory stays what it was.</summary>
    [UffdFact]
    public void AVmHasThePagesOfOneImageAlsoAfterARestart()
    {
        using var manager = new ServiceManager(_folder["notify"]);
        var memory = StartAndDie(manager);
        File.Move(_folder.WriteImage("other", 64, firstNumber: 1000), _folder["image"], overwrite: true);
        StartReady(manager);
        TestFolder.AssertPages(memory, 16, 48);
        Assert.Contains($"another file lies at {_folder["image"]}", Host.OnlyHandler().Error, StringComparison.Ordinal);
    }

    [UffdFact]
    public void AnImageThatWasOverwrittenIsRefusedByTheNextSupervisor()
    {
        using var manager = new ServiceManager(_folder["notify"]);
        StartAndDie(manager);
        using (var file = File.Open(_folder["image"], FileMode.Open, FileAccess.Write, FileShare.ReadWrite)) file.Write(new byte[4096]);
        AssertRefused(manager, [], $"ImageChanged: The memory image or layer {_folder["image"]} was written to since VMs were given it: it was inode ");
        // The VMs are still kept, for an operator who restores the image.
        Assert.Contains("vm-1-uffd", manager.KeptNames, StringComparison.Ordinal);
    }

    [UffdFact]
    public void AnotherImageThanVmsWereGivenIsRefused()
    {
        using var manager = new ServiceManager(_folder["notify"]);
        StartAndDie(manager);
        _folder.WriteImage("layer", 64);
        AssertRefused(manager, ["--layer-paths", _folder["layer"]],
            $"ImageChanged: VMs were given {_folder["image"]}, and this handler is to serve {_folder["image"]} with {_folder["layer"]}.");
    }

    /// <summary>Without a VM nothing was promised: what lies at the path now is served.</summary>
    [UffdFact]
    public void AnImageThatNoVmHasIsOpenedAnew()
    {
        _folder.WriteImage("image", 64, firstNumber: 1000);
        using var manager = new ServiceManager(_folder["notify"]);
        var first = StartReady(manager);
        Assert.Equal(3, manager.Kept.Count);
        ServiceManager.Kill(first);
        File.Move(_folder.WriteImage("other", 64), _folder["image"], overwrite: true);
        manager.Told.Clear();
        StartReady(manager);
        var memory = Memory(64);
        UffdRegistration.Connect(_folder["h.sock"], memory);
        TestFolder.AssertPages(memory, 0, 64);
        Assert.Null(Host.OnlyHandler().Error);
        Assert.True(manager.WasTold(_ => manager.KeptNames == "image-0 images listener vm-1-list vm-1-process vm-1-socket vm-1-state vm-1-uffd"), manager.KeptNames);
    }
}
