using System.Buffers.Binary;

namespace GuestMemory.Core.Tests;

/// <summary>A VM with two vCPUs that do the steps of live-guest.c; each has a thread that runs it and takes away the pages that it gives.</summary>
internal sealed class LiveGuest : IDisposable
{
    private const ulong CodeAt = 0x10000;
    private const ulong TablesAt = 0x4000;
    private const ulong MemoryAt = 0x1000000;

    private readonly GuestRegionMmap[] _regions;
    private readonly List<Thread> _threads = [];
    private readonly CancellationTokenSource _over = new();
    private readonly LiveSteps _steps;
    private volatile Exception? _failure;

    /// <param name="folder">For the guest's program.</param>
    /// <param name="pages">The pages that are written, with their numbers in them as <see cref="TestFolder.Fill"/> does it.</param>
    /// <param name="isShared">Whether they are a memfd's.</param>
    /// <param name="options">The VM's.</param>
    public LiveGuest(TestFolder folder, int pages, bool isShared = false, KvmVmOptions? options = null)
    {
        _steps = new LiveSteps(pages);
        var source = Path.Combine(AppContext.BaseDirectory, "Kvm", "live-guest.c");
        var program = Compiler.Compile(source, folder["guest"], "-ffreestanding", "-nostdlib", "-static", "-fno-pic", "-no-pie", "-fno-stack-protector", "-fcf-protection=none", "-mno-red-zone", "-mno-sse",
            "-fno-asynchronous-unwind-tables", $"-Wl,--oformat=binary,--build-id=none,--section-start=.boot=0x{CodeAt:x},-Ttext=0x{CodeAt + 0x10000:x},-e,start");
        var builder = new MmapRegionBuilder((ulong)pages * 4096);
        _regions =
        [
            new GuestRegionMmap(new MmapRegionBuilder(0x100000).Build(), new GuestAddress(0), "code"),
            new GuestRegionMmap((isShared ? builder.WithMemfd() : builder).Build(), new GuestAddress(MemoryAt), "pages"),
        ];
        Memory = GuestMemoryMmap.FromRegions(_regions);
        Memory.WriteExact(new GuestAddress(CodeAt), File.ReadAllBytes(program));
        var page = new byte[4096];
        for (var i = 0; i < pages; i++)
        {
            TestFolder.Fill(page, i);
            Memory.WriteExact(new GuestAddress(MemoryAt + ((ulong)i * 4096)), page);
        }

        Vm = new KvmVm(Memory, options);
        Pages = pages;
    }

    public KvmVm Vm { get; }

    public GuestMemoryMmap Memory { get; }

    public int Pages { get; }

    /// <summary>Whether the pages that the vCPUs give away stay: whoever handles an exit is not held by a pause.</summary>
    public bool KeepsPages { get; init; }

    /// <summary>The bytes before the pages in an image.</summary>
    public static int Before => 0x100000;

    /// <summary>Has the vCPUs begin, or one of them.</summary>
    public void Go(params int[] vcpus)
    {
        foreach (var number in vcpus.Length > 0 ? vcpus : [0, 1])
        {
            var vcpu = Vm.CreateVcpu();
            vcpu.SetLongMode(CodeAt, new GuestAddress(TablesAt), mapped: 1);
            vcpu.Registers = vcpu.Registers with { rdi = (ulong)number, rsi = (ulong)Pages };
            var thread = new Thread(() => Run(vcpu)) { IsBackground = true, Name = $"vcpu-{number}" };
            _threads.Add(thread);
            thread.Start();
        }
    }

    /// <summary>The complete steps of each.</summary>
    public ulong[] Steps()
    {
        if (_failure is { } failure) throw new InvalidOperationException(failure.ToString(), failure);
        var words = new byte[128];
        Memory.ReadExact(new GuestAddress(MemoryAt), words);
        return [LiveSteps.Of(BinaryPrimitives.ReadUInt64LittleEndian(words)), LiveSteps.Of(BinaryPrimitives.ReadUInt64LittleEndian(words.AsSpan(64)))];
    }

    /// <summary>Waits until each vCPU has made so many further steps.</summary>
    public void AwaitSteps(ulong count)
    {
        var before = Steps();
        Host.Until(() => Steps() is var now && now[0] >= before[0] + count && now[1] >= before[1] + count);
    }

    /// <summary>Checks that an image of the whole memory is that of one instant.</summary>
    public ulong[] AssertInstant(ReadOnlySpan<byte> image) => _steps.AssertInstant(image[Before..]);

    public byte[] Read()
    {
        var all = new byte[Memory.Size];
        Memory.ReadExact(new GuestAddress(0), all.AsSpan(0, Before));
        Memory.ReadExact(new GuestAddress(MemoryAt), all.AsSpan(Before));
        return all;
    }

    public void Dispose()
    {
        _over.Cancel();
        foreach (var thread in _threads) thread.Join();
        Vm.Dispose();
        foreach (var region in _regions) region.Dispose();
        _over.Dispose();
    }

    private void Run(KvmVcpu vcpu)
    {
        try
        {
            while (true)
            {
                var exit = vcpu.Run(_over.Token);
                if (exit is not { Reason: KvmExitReason.Mmio, IsWrite: true, Size: 8 }) throw new InvalidOperationException($"{vcpu}: {exit}");
                if (!KeepsPages) Vm.HandleBalloonEvent(BalloonEvent.Inflate(new GuestAddress(exit.Value), 4096));
            }
        }
        catch (OperationCanceledException)
        {
            // The test is over.
        }
        catch (GuestMemoryException exception) when (exception.Error == GuestMemoryError.VmDisposed)
        {
            // So is the VM.
        }
        catch (Exception exception)
        {
            _failure = exception;
        }
    }
}
