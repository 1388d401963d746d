using GuestMemory.Core;
using GuestMemory.Core.Interop;
using GuestMemory.Core.Userfault;

namespace GuestMemory.UffdHost;

/// <summary>
/// An image as the supervisor has it: its files, the socket at which it is served, and its records of touches. A worker is given all but the socket.
/// </summary>
/// <param name="options">The image.</param>
/// <param name="prefix">What stands before the names of its descriptors, and of those of its VMs, where these are kept; see <see cref="PrefixOf"/>.</param>
internal sealed class ServedImage(UffdImageOptions options, string prefix) : IDisposable
{
    public UffdImageOptions Options => options;

    /// <summary>A number that no other image of this supervisor has or had: a name may be that of another image later.</summary>
    public int Number { get; init; }

    public string Name => options.Name;

    public string Prefix => prefix;

    /// <summary>The open files; null where they could not be had.</summary>
    public KeptImages? Files { get; set; }

    /// <summary>Where its VMMs come in; null before.</summary>
    public HandoverListener? Handovers { get; set; }

    /// <summary>The record that is replayed, as an open file; null where there is none, or VMs that run go on without.</summary>
    public SafeDescriptor? Replay { get; set; }

    /// <summary>What workers note touches in; null where they do not.</summary>
    public UffdRecorder? Recorder { get; set; }

    /// <summary>Whether the file of the record was begun.</summary>
    public bool IsRecording { get; set; }

    /// <summary>The bytes that VMs may have of it, as a worker says; 0 before.</summary>
    public ulong Length { get; set; }

    /// <summary>Whether the worker that has the VMs has opened it.</summary>
    public bool IsReady { get; set; }

    /// <summary>Whether it goes with the last VM that is served from it.</summary>
    public bool IsRemoved { get; set; }

    /// <summary>Why its files must not be read any more; null where they may.</summary>
    public GuestMemoryException? Failure { get; set; }

    /// <summary>What was counted for its VMs that have ended. Under the lock of <see cref="VmRecords"/>.</summary>
    public UffdTotals Ended { get; } = new();

    /// <summary>Where it is served: a socket that a service manager made may lie elsewhere than was asked for.</summary>
    public string SocketPath => Handovers?.Path ?? options.SocketPath;

    /// <summary>
    /// What stands before the names of the descriptors of an image: nothing for that of a handler that was started with one, whose names an older program knows;
    /// its name and a slash for any other one, which an older program does not take for its own.
    /// </summary>
    public static string PrefixOf(string name) => name + "/";

    /// <summary>The prefix of a descriptor's name, and the rest of it.</summary>
    public static (string Prefix, string Name) Split(string name)
    {
        var end = name.IndexOf('/', StringComparison.Ordinal) + 1;
        return (name[..end], name[end..]);
    }

    /// <summary>Gives it to a worker.</summary>
    /// <returns>False where it does not take it.</returns>
    public bool TrySend(Channel channel)
    {
        if (Failure is null)
        {
            if (!Files!.TrySend(channel)) return false;
            if (Recorder is not null && !channel.TrySendPatiently(new ChannelMessage { Type = ChannelMessageType.Record }, Recorder.List)) return false;
        }

        if (Replay is not null && !channel.TrySendPatiently(new ChannelMessage { Type = ChannelMessageType.Replay }, Replay)) return false;
        return channel.TrySendPatiently(new ChannelMessage { Type = ChannelMessageType.AddImage, Image = Name, Number = Number, NewImage = Failure is null ? options : options with { RecordPath = null }, ImageLength = Length, IsFailed = Failure is not null });
    }

    /// <summary>Makes what touches are noted in, or goes on with what a supervisor before this one made.</summary>
    /// <exception cref="GuestMemoryException">InvalidRecord, InvalidImage.</exception>
    public void OpenRecorder(SafeDescriptor? touches)
    {
        if (options.RecordPath is null || Failure is not null)
        {
            touches?.Dispose();
            return;
        }

        SafeDescriptor? list = touches;
        try
        {
            var length = ImageFile.LengthOf(Files!.Files);
            list ??= UffdRecorder.CreateList(length);
            Recorder = new UffdRecorder(list, length, options.RecordPath);
            IsRecording = touches is not null;
        }
        catch
        {
            list?.Dispose();
            throw;
        }
    }

    /// <summary>Begins the file of its record, or after another supervisor goes on with what that has saved.</summary>
    /// <exception cref="GuestMemoryException">InvalidRecord.</exception>
    public void BeginRecord()
    {
        if (Recorder is null || IsRecording) return;
        _ = Files!.IsStored ? Recorder.GoOn() : Recorder.Begin();
        IsRecording = true;
    }

    public UffdImageStatus Status(int vms) => new()
    {
        Options = options with { SocketPath = SocketPath },
        State = IsRemoved ? UffdImageState.Removing : Failure is not null ? UffdImageState.Failed : UffdImageState.Serving,
        ConnectionCount = vms,
        Error = Failure?.Message,
    };

    public void Dispose()
    {
        Handovers?.Dispose();
        Files?.Dispose();
        Replay?.Dispose();
        Recorder?.Dispose();
    }
}
