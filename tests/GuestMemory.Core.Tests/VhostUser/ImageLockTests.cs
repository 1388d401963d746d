using System.Diagnostics;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Tests;

/// <summary>What keeps an image from being written by two: by disks of this process, and by disks and QEMU's programs.</summary>
public sealed class ImageLockTests : IDisposable
{
    private readonly TestFolder _folder = new();

    public ImageLockTests() => File.WriteAllBytes(_folder["disk"], new byte[1 << 20]);

    public void Dispose() => _folder.Dispose();

    /// <summary>Each that listens takes the image when its virtqueues run, and leaves it when they stop.</summary>
    [Theory]
    [InlineData(false, false)]
    [InlineData(true, false)]
    [InlineData(false, true)]
    public void TwoDisksOnOneImageDoNotRunWhereOneWrites(bool firstReads, bool secondReads)
    {
        using var first = new Disk(_folder, "first", firstReads);
        using var second = new Disk(_folder, "second", secondReads);
        using (var guest = first.Connect())
        {
            Assert.Equal(0, Read(guest));
            second.Refused("this process, by another opening of the file,");
            Assert.Equal(0, Read(guest));
            guest.Send(VhostUserRequest.GetVringBase, FrontEnd.State(0, 0));
            guest.Reply(VhostUserRequest.GetVringBase);
            using (var other = second.Connect()) Assert.Equal(0, Read(other));
            Host.Until(() => second.Backend.FrontEndProcessId is null);
        }

        Host.Until(() => first.Backend.FrontEndProcessId is null);
        using var again = first.Connect();
        Assert.Equal(0, Read(again));
    }

    [Fact]
    public void ReadersShareAnImage()
    {
        using var first = new Disk(_folder, "first", isReadOnly: true);
        using var second = new Disk(_folder, "second", isReadOnly: true);
        using var guest = first.Connect();
        using var other = second.Connect();
        Assert.Equal((0, 0), (Read(guest), Read(other)));
    }

    /// <summary>A disk that is refused while it is being started leaves nothing locked.</summary>
    [Fact]
    public void ARefusalLocksNothing()
    {
        using var holder = Image();
        using var image = Image();
        ImageLock.Take(holder, isReadOnly: false);
        Assert.Equal(GuestMemoryError.ImageInUse, Assert.Throws<GuestMemoryException>(() => ImageLock.Take(image, isReadOnly: true)).Error);
        ImageLock.Release(holder);
        Assert.All(Enumerable.Range(0, 300), place => Assert.Equal(0, FileLock.TryTest(holder, place)));
    }

    /// <summary>qemu-io lets others write, and so runs beside what reads alone; a disk does not let others write.</summary>
    [QemuFact]
    public void ADiskIsRefusedWhereQemuWrites()
    {
        foreach (var isReadOnly in new[] { false, true })
        {
            using var disk = new Disk(_folder, "disk.sock", isReadOnly);
            using (var qemu = Start("qemu-io", "-f", "raw", _folder["disk"]))
            {
                Host.Until(() => Locks(qemu.Id).Contains(" 100 101", StringComparison.Ordinal));
                disk.Refused($"process {qemu.Id} (qemu-io) writes it");
                End(qemu);
            }

            using var guest = disk.Connect();
            Assert.Equal(0, Read(guest));
        }
    }

    [QemuFact]
    public void QemuIsRefusedWhereADiskRuns()
    {
        foreach (var isReadOnly in new[] { false, true })
        {
            using var disk = new Disk(_folder, "disk.sock", isReadOnly);
            using (var guest = disk.Connect())
            {
                Assert.Contains("Failed to get \"write\" lock", Run("qemu-io", "-f", "raw", "-c", "write 0 512", _folder["disk"]), StringComparison.Ordinal);
                Assert.Contains("\"write\" lock", Run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", _folder["disk"], _folder["disk"]), StringComparison.Ordinal);
                // It lets others write what it reads.
                Assert.Contains("read 512/512", Run("qemu-io", "-r", "-f", "raw", "-c", "read 0 512", _folder["disk"]), StringComparison.Ordinal);
                Assert.Equal(0, Read(guest));
            }

            Host.Until(() => disk.Backend.FrontEndProcessId is null);
            Assert.Contains("wrote 512/512", Run("qemu-io", "-f", "raw", "-c", "write 0 512", _folder["disk"]), StringComparison.Ordinal);
        }
    }

    [QemuFact]
    public void AnExportOfQemuIsReadBesideADiskThatReadsAndNotWritten()
    {
        foreach (var isWritable in new[] { false, true })
        {
            using var daemon = Start("qemu-storage-daemon", "--blockdev", $"driver=file,node-name=image,filename={_folder["disk"]},read-only={(isWritable ? "off" : "on")}",
                "--export", $"type=vhost-user-blk,id=export,node-name=image,addr.type=unix,addr.path={_folder["daemon"]},writable={(isWritable ? "on" : "off")}");
            Host.Until(() => Locks(daemon.Id).Contains(isWritable ? " 100 101" : " 100 100", StringComparison.Ordinal));
            using (var reader = new Disk(_folder, "reader", isReadOnly: true))
            {
                if (isWritable)
                {
                    reader.Refused($"process {daemon.Id} (qemu-storage-da) writes it");
                }
                else
                {
                    using var guest = reader.Connect();
                    Assert.Equal(0, Read(guest));
                }
            }

            End(daemon);
        }
    }

    private static int Read(DiskFrontEnd front) => front.Guest.Do(VirtioBlk.VIRTIO_BLK_T_IN, 0, (DiskGuest.Data, 512, true));

    private static Process Start(string program, params string[] arguments) => Process.Start(new ProcessStartInfo(program, arguments)
    {
        UseShellExecute = false,
        RedirectStandardInput = true,
        RedirectStandardOutput = true,
        RedirectStandardError = true,
    })!;

    private static void End(Process process)
    {
        process.Kill();
        process.WaitForExit();
    }

    private static string Run(string program, params string[] arguments)
    {
        using var process = Start(program, arguments);
        process.StandardInput.Close();
        var error = process.StandardError.ReadToEndAsync();
        var output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        return output + error.GetAwaiter().GetResult();
    }

    /// <summary>The lists of locks of a process; empty where it closes a file at that moment.</summary>
    private static string Locks(int process)
    {
        try
        {
            return string.Join('\n', Directory.GetFiles($"/proc/{process}/fdinfo").SelectMany(File.ReadAllLines).Where(static line => line.StartsWith("lock:", StringComparison.Ordinal)));
        }
        catch (IOException)
        {
            return "";
        }
    }

    private SafeFileHandle Image() => File.OpenHandle(_folder["disk"], FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite);

    private sealed class Disk : IDisposable
    {
        private readonly SafeFileHandle _image;
        private readonly BlockDevice _device;

        public Disk(TestFolder folder, string socket, bool isReadOnly)
        {
            _image = File.OpenHandle(folder["disk"], FileMode.Open, isReadOnly ? FileAccess.Read : FileAccess.ReadWrite, FileShare.ReadWrite);
            _device = new BlockDevice(_image, isReadOnly);
            Backend = VhostUserBackend.Start(folder[socket], _device, []);
        }

        public VhostUserBackend Backend { get; }

        public DiskFrontEnd Connect()
        {
            var front = new DiskFrontEnd(Backend);
            front.Negotiate();
            front.Start();
            return front;
        }

        /// <summary>A front end whose virtqueue cannot run, and is told.</summary>
        public void Refused(string why)
        {
            using (var front = new DiskFrontEnd(Backend))
            {
                front.Negotiate();
                Assert.ThrowsAny<Exception>(() => front.Start());
            }

            Host.Until(() => Backend.FrontEndProcessId is null);
            Assert.Contains(why, Backend.Error, StringComparison.Ordinal);
        }

        public void Dispose()
        {
            Backend.Dispose();
            _device.Dispose();
            _image.Dispose();
        }
    }
}
