using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.UffdHost;

/// <summary>What has come to a worker of the next image: its files, the record that is replayed, and the list in which touches are noted.</summary>
internal sealed class ArrivingImage : IDisposable
{
    private readonly List<ImageFile> _files = [];
    private SafeDescriptor? _replay;
    private SafeDescriptor? _touches;

    /// <summary>Takes a part; false where the message is about something else.</summary>
    /// <exception cref="GuestMemoryException">ControlFailed: it came without its descriptor.</exception>
    public bool TryTake(ChannelMessage message, List<SafeDescriptor> descriptors)
    {
        if (message.Type is not (ChannelMessageType.Image or ChannelMessageType.Replay or ChannelMessageType.Record)) return false;
        if (descriptors.Count != 1) throw new GuestMemoryException(GuestMemoryError.ControlFailed, $"A part of an image came to the worker with {descriptors.Count} descriptors instead of 1.");
        if (message.Type == ChannelMessageType.Image) _files.Add(ImageFile.Adopt(message.Message ?? "", descriptors[0], message.Part));
        else if (message.Type == ChannelMessageType.Replay) _replay = descriptors[0];
        else _touches = descriptors[0];
        descriptors.Clear();
        return true;
    }

    /// <summary>Opens the image whose parts have come; the next one's come afterwards.</summary>
    /// <param name="all">What is the same for all images.</param>
    /// <param name="options">The image.</param>
    /// <param name="message">What the supervisor says of it.</param>
    /// <param name="isSuccessor">Whether another worker has begun with it.</param>
    /// <exception cref="GuestMemoryException">It cannot be opened, or its options contradict those of all.</exception>
    public UffdImageService Open(UffdHandlerOptions all, UffdImageOptions options, ChannelMessage message, bool isSuccessor)
    {
        PageSource? source = null;
        var touches = _touches;
        _touches = null;
        try
        {
            if (message.IsFailed)
                source = new UnreadableSource(options.MemoryPath, message.ImageLength > 0 ? message.ImageLength : long.MaxValue & ~(HostPage.Size - 1));
            else
                source = OpenSource(options);
            using var record = _replay is null ? null : new SafeFileHandle(_replay.Number, ownsHandle: false);
            var opened = source;
            var policy = UffdPolicy.From(all, options, source, isSuccessor, Log.Lines.WentWrong, record, () => Recorder(ref touches, opened.Length));
            return new UffdImageService(options, source, policy);
        }
        catch
        {
            source?.Dispose();
            throw;
        }
        finally
        {
            touches?.Dispose();
            Dispose();
        }
    }

    public void Dispose()
    {
        foreach (var file in _files) file.Dispose();
        _files.Clear();
        _replay?.Dispose();
        _touches?.Dispose();
        _replay = _touches = null;
    }

    private PageSource OpenSource(UffdImageOptions options)
    {
        if (_files.Count == 0) throw new GuestMemoryException(GuestMemoryError.ControlFailed, $"The image '{options.Name}' came to the worker without a file.");
        ImageFile[] files = [.. _files];
        _files.Clear();
        return ImageFile.OpenSource(files);
    }

    private static UffdRecorder Recorder(ref SafeDescriptor? touches, ulong length)
    {
        var recorder = new UffdRecorder(touches ?? throw new GuestMemoryException(GuestMemoryError.InvalidRecord, "The list of touches did not come to the worker."), length, path: null);
        touches = null;
        return recorder;
    }
}
