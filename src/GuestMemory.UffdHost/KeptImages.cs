using System.Globalization;
using System.Text.Json;
using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <summary>
/// The memory image and its layers as open files, which every worker is given: whatever becomes of their paths, all VMs have the same
/// memory. With a service manager they, and what they looked like, are kept for the next supervisor.
/// </summary>
internal sealed class KeptImages : IDisposable
{
    private const string RecordName = "images";
    private const int MaxRecordBytes = 4 << 20;

    private readonly IReadOnlyList<ImageFile> _files;
    private readonly bool _isStored;
    private ImageRecord _record;
    private SafeDescriptor? _recordFile;

    private KeptImages(IReadOnlyList<ImageFile> files, ImageRecord? stored)
    {
        _files = files;
        _isStored = stored is not null;
        _record = stored ?? new ImageRecord { Files = [.. files.Select(static file => ImageIdentity.Of(file))] };
    }

    /// <summary>Whether these are the files that a supervisor before this one has opened.</summary>
    public bool IsStored => _isStored;

    /// <summary>The image, then the layers, the oldest first, each with the file of its bits behind it where there is one.</summary>
    public IReadOnlyList<ImageFile> Files => _files;

    /// <summary>
    /// The files that came with this process, where VMs came too or will; else those that lie at the paths now. What is kept and not used is
    /// closed.
    /// </summary>
    /// <param name="options">The handler's.</param>
    /// <param name="systemd">What came with this process.</param>
    /// <param name="isSuccessor">Whether VMs will come.</param>
    /// <exception cref="GuestMemoryException">ImageChanged: the files are not what the VMs were given. ImageNotFound, ImageUnreadable.</exception>
    public static KeptImages Open(UffdHandlerOptions options, Systemd systemd, bool isSuccessor)
    {
        var kept = systemd.Descriptors.FindAll(static item => IsName(item.Name));
        _ = systemd.Descriptors.RemoveAll(static item => IsName(item.Name));
        try
        {
            if ((isSuccessor || systemd.Descriptors.Exists(static item => VmRecords.Parse(item.Name) is not null)) && kept.Find(static item => item.Name == RecordName) is { Descriptor: { } record })
                return Restore(options, Read(record), kept);
            return new KeptImages(ImageFile.OpenAll(options.MemoryPath, options.LayerPaths), null);
        }
        finally
        {
            // Those that are used were taken out of the list.
            foreach (var (_, descriptor) in kept) descriptor.Dispose();
        }
    }

    /// <summary>Sees whether the files are still what they were when they were opened.</summary>
    /// <exception cref="GuestMemoryException">ImageChanged.</exception>
    public void Check()
    {
        for (var i = 0; i < _files.Count; i++) Compare(_record.Files[i], ImageIdentity.Of(_files[i]));
    }

    /// <summary>What a worker says of how the bytes lie in the files; it must be the same for all workers.</summary>
    /// <exception cref="GuestMemoryException">ImageChanged.</exception>
    public void CheckLayout(string layout)
    {
        if (_record.Layout is null) _record = _record with { Layout = layout };
        else if (_record.Layout != layout)
            throw new GuestMemoryException(GuestMemoryError.ImageChanged, $"The memory image {_files[0].Path} and its layers were '{_record.Layout}' when VMs were given them, and are '{layout}' now: some pages would be of another memory.");
    }

    /// <summary>Whether one of them belongs to another user.</summary>
    public bool HasFileOfOthers(uint user) => _files.Any(file => FileStatus.Get(file.Descriptor).stx_uid != user);

    /// <summary>Gives the files to a worker; false where it does not take them.</summary>
    public bool TrySend(Channel channel)
    {
        foreach (var file in _files)
        {
            if (!channel.TrySend(new ChannelMessage { Type = ChannelMessageType.Image, Message = file.Path, IsMap = file.IsMap }, file.Descriptor)) return false;
        }

        return true;
    }

    /// <summary>Has the service manager keep them, in place of any that it kept before.</summary>
    public void Store(Systemd systemd)
    {
        if (!systemd.IsThere || _isStored) return;
        _recordFile = JsonFile.Create("uffd-images", _record, HostJson.Default.ImageRecord);
        Replace(RecordName, _recordFile);
        for (var i = 0; i < _files.Count; i++) Replace(Name(i), _files[i].Descriptor);

        void Replace(string name, SafeDescriptor descriptor)
        {
            systemd.Remove(name);
            systemd.Store(name, descriptor);
        }
    }

    /// <summary>Gives the files, and what is known of them, to a program that takes over.</summary>
    /// <exception cref="GuestMemoryException">UpgradeFailed.</exception>
    public void Give(Successor successor)
    {
        using var record = JsonFile.Create("uffd-images", _record, HostJson.Default.ImageRecord);
        successor.Give(RecordName, record);
        for (var i = 0; i < _files.Count; i++) successor.Give(Name(i), _files[i].Descriptor);
    }

    /// <summary>The handler ends for good: no other process is to keep them.</summary>
    public void Forget(Systemd systemd)
    {
        if (!systemd.IsThere) return;
        systemd.Remove(RecordName);
        for (var i = 0; i < _files.Count; i++) systemd.Remove(Name(i));
    }

    /// <summary>Paths at which another file lies by now; VMs go on with the one that they were given.</summary>
    public IEnumerable<string> ReplacedPaths() => _files.Select(static file => file.Path).Where((path, i) =>
        FileStatus.TryGet(path, out var status, follow: true) != 0 || (status.stx_dev_major, status.stx_dev_minor, status.stx_ino) != (_record.Files[i].DeviceMajor, _record.Files[i].DeviceMinor, _record.Files[i].Inode));

    public void Dispose()
    {
        foreach (var file in _files) file.Dispose();
        _recordFile?.Dispose();
    }

    internal static bool IsName(string name) => name == RecordName
        || (name.StartsWith("image-", StringComparison.Ordinal) && int.TryParse(name.AsSpan(6), NumberStyles.None, CultureInfo.InvariantCulture, out var index) && Name(index) == name);

    /// <exception cref="GuestMemoryException">ImageChanged: it is no such record.</exception>
    internal static ImageRecord Read(SafeDescriptor file)
    {
        try
        {
            return JsonFile.Read(file, MaxRecordBytes, HostJson.Default.ImageRecord);
        }
        catch (Exception exception) when (exception is JsonException or IOException or NotSupportedException)
        {
            throw new GuestMemoryException(GuestMemoryError.ImageChanged, $"What the service manager kept of the memory image cannot be read: {JsonErrorText.Of(exception)}", exception);
        }
    }

    private static KeptImages Restore(UffdHandlerOptions options, ImageRecord record, List<(string Name, SafeDescriptor Descriptor)> kept)
    {
        var given = record.Files.Where(static file => !file.IsMap).Select(static file => file.Path).ToArray();
        string[] asked = [options.MemoryPath, .. options.LayerPaths];
        if (!given.SequenceEqual(asked, StringComparer.Ordinal))
            throw Changed($"VMs were given {string.Join(" with ", given)}, and this handler is to serve {string.Join(" with ", asked)}.");
        var files = new List<ImageFile>(record.Files.Count);
        try
        {
            for (var i = 0; i < record.Files.Count; i++)
            {
                var at = kept.FindIndex(item => item.Name == Name(i));
                if (at < 0) throw Changed($"The service manager did not keep {record.Files[i].Path}, which VMs were given; it keeps too few descriptors (FileDescriptorStoreMax).");
                files.Add(ImageFile.Adopt(record.Files[i].Path, kept[at].Descriptor, record.Files[i].IsMap));
                kept.RemoveAt(at);
                Compare(record.Files[i], ImageIdentity.Of(files[i]));
            }

            return new KeptImages(files, record);
        }
        catch
        {
            foreach (var file in files) file.Dispose();
            throw;
        }
    }

    private static void Compare(ImageIdentity given, ImageIdentity now)
    {
        if (now != given) throw Changed($"The memory image or layer {given.Path} was written to since VMs were given it: it was {given}, and is {now}.");
    }

    private static GuestMemoryException Changed(string how) => new(GuestMemoryError.ImageChanged, $"{how} A VM that went on would have pages of two memories.");

    private static string Name(int index) => string.Create(CultureInfo.InvariantCulture, $"image-{index}");
}
