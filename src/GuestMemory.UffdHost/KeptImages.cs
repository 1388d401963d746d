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

    private readonly string _prefix;
    private readonly IReadOnlyList<ImageFile> _files;
    private readonly bool _isStored;
    private ImageRecord _record;
    private SafeDescriptor? _recordFile;

    private KeptImages(string prefix, IReadOnlyList<ImageFile> files, ImageRecord record, bool isStored)
    {
        _prefix = prefix;
        _files = files;
        _isStored = isStored;
        _record = record;
    }

    /// <summary>Whether these are the files that a supervisor before this one has opened.</summary>
    public bool IsStored => _isStored;

    /// <summary>The image, then the layers, the oldest first, each with the file of its bits behind it where there is one; at the end a record with pages.</summary>
    public IReadOnlyList<ImageFile> Files => _files;

    /// <summary>The images that came with this process, each by the prefix of its names; what comes of a descriptor is the caller's.</summary>
    public static Dictionary<string, KeptFiles> Take(Systemd systemd)
    {
        var kept = new Dictionary<string, KeptFiles>(StringComparer.Ordinal);
        foreach (var item in systemd.Descriptors.FindAll(static item => IsName(item.Name)))
        {
            var (prefix, name) = ServedImage.Split(item.Name);
            if (!kept.TryGetValue(prefix, out var files)) kept.Add(prefix, files = new KeptFiles());
            if (name == RecordName) ReadRecord(item.Descriptor, files);
            files.Descriptors.Add((name, item.Descriptor));
            _ = systemd.Descriptors.Remove(item);
        }

        return kept;
    }

    /// <summary>The files that lie at the paths now.</summary>
    /// <param name="image">The image.</param>
    /// <param name="prefix">What its descriptors are kept by.</param>
    /// <exception cref="GuestMemoryException">ImageNotFound, ImageUnreadable.</exception>
    public static KeptImages Open(UffdImageOptions image, string prefix)
    {
        var files = ImageFile.OpenAll(image.MemoryPath, image.LayerPaths, image.ReplayPath);
        return new KeptImages(prefix, files, new ImageRecord { Files = [.. files.Select(static file => ImageIdentity.Of(file))], Options = prefix.Length > 0 ? image : null }, isStored: false);
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
            if (!channel.TrySendPatiently(new ChannelMessage { Type = ChannelMessageType.Image, Message = file.Path, Part = file.Part }, file.Descriptor)) return false;
        }

        return true;
    }

    /// <summary>Has the service manager keep them, in place of any that it kept before.</summary>
    public void Store(Systemd systemd)
    {
        if (!systemd.IsThere || _isStored) return;
        _recordFile = JsonFile.Create("uffd-images", _record, HostJson.Default.ImageRecord);
        Replace(_prefix + RecordName, _recordFile);
        for (var i = 0; i < _files.Count; i++) Replace(_prefix + Name(i), _files[i].Descriptor);

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
        successor.Give(_prefix + RecordName, record);
        for (var i = 0; i < _files.Count; i++) successor.Give(_prefix + Name(i), _files[i].Descriptor);
    }

    /// <summary>The handler ends for good: no other process is to keep them.</summary>
    public void Forget(Systemd systemd)
    {
        if (!systemd.IsThere) return;
        systemd.Remove(_prefix + RecordName);
        for (var i = 0; i < _files.Count; i++) systemd.Remove(_prefix + Name(i));
    }

    /// <summary>Paths at which another file lies by now; VMs go on with the one that they were given.</summary>
    public IEnumerable<string> ReplacedPaths() => _files.Select(static file => file.Path).Where((path, i) =>
        FileStatus.TryGet(path, out var status, follow: true) != 0 || (status.stx_dev_major, status.stx_dev_minor, status.stx_ino) != (_record.Files[i].DeviceMajor, _record.Files[i].DeviceMinor, _record.Files[i].Inode));

    public void Dispose()
    {
        foreach (var file in _files) file.Dispose();
        _recordFile?.Dispose();
    }

    internal static bool IsName(string name)
    {
        var (_, rest) = ServedImage.Split(name);
        return rest == RecordName
            || (rest.StartsWith("image-", StringComparison.Ordinal) && int.TryParse(rest.AsSpan(6), NumberStyles.None, CultureInfo.InvariantCulture, out var index) && Name(index) == rest);
    }

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

    /// <summary>The files that came with this process, which VMs were given.</summary>
    /// <param name="image">The image.</param>
    /// <param name="prefix">What its descriptors are kept by.</param>
    /// <param name="given">What came of it; those that are used are taken out.</param>
    /// <exception cref="GuestMemoryException">ImageChanged: they are not what the VMs were given.</exception>
    public static KeptImages Restore(UffdImageOptions image, string prefix, KeptFiles given)
    {
        var (record, kept) = (given.Record!, given.Descriptors);
        var paths = record.Files.Where(static file => file.Part == ImagePart.Memory).Select(static file => file.Path).ToArray();
        string[] asked = [image.MemoryPath, .. image.LayerPaths];
        if (!paths.SequenceEqual(asked, StringComparer.Ordinal))
            throw Changed($"VMs were given {string.Join(" with ", paths)}, and this handler is to serve {string.Join(" with ", asked)}.");
        var files = new List<ImageFile>(record.Files.Count);
        try
        {
            for (var i = 0; i < record.Files.Count; i++)
            {
                var at = kept.FindIndex(item => item.Name == Name(i));
                if (at < 0) throw Changed($"The service manager did not keep {record.Files[i].Path}, which VMs were given; it keeps too few descriptors (FileDescriptorStoreMax).");
                files.Add(ImageFile.Adopt(record.Files[i].Path, kept[at].Descriptor, record.Files[i].Part));
                kept.RemoveAt(at);
                Compare(record.Files[i], ImageIdentity.Of(files[i]));
            }

            return new KeptImages(prefix, files, record, isStored: true);
        }
        catch
        {
            foreach (var file in files) file.Dispose();
            throw;
        }
    }

    private static void ReadRecord(SafeDescriptor file, KeptFiles files)
    {
        try
        {
            files.Record = Read(file);
        }
        catch (GuestMemoryException exception)
        {
            files.Failure = exception;
        }
    }

    private static void Compare(ImageIdentity given, ImageIdentity now)
    {
        if (now != given) throw Changed($"The memory image or layer {given.Path} was written to since VMs were given it: it was {given}, and is {now}.");
    }

    private static GuestMemoryException Changed(string how) => new(GuestMemoryError.ImageChanged, $"{how} A VM that went on would have pages of two memories.");

    private static string Name(int index) => string.Create(CultureInfo.InvariantCulture, $"image-{index}");
}
