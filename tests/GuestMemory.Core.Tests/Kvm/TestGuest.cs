using System.Buffers.Binary;

namespace GuestMemory.Core.Tests;

/// <summary>A VM with 128 KiB at address 0 and one vCPU, which runs a few instructions in long mode.</summary>
internal sealed class TestGuest : IDisposable
{
    public const ulong RamSize = 0x20000;
    private const ulong CodeAt = 0x1000;
    private const ulong TablesAt = 0x4000;

    public TestGuest(KvmVmOptions? options = null, MmapRegion? ram = null)
    {
        Ram = new GuestRegionMmap(ram ?? new MmapRegionBuilder(RamSize).Build(), new GuestAddress(0), "ram");
        Memory = GuestMemoryMmap.FromRegions([Ram]);
        Vm = new KvmVm(Memory, options);
        Vcpu = Vm.CreateVcpu();
    }

    public GuestRegionMmap Ram { get; }

    public GuestMemoryMmap Memory { get; }

    public KvmVm Vm { get; }

    public KvmVcpu Vcpu { get; }

    /// <summary>Puts instructions behind one another, and has the vCPU begin there.</summary>
    public void Load(params byte[][] code)
    {
        Memory.WriteExact(new GuestAddress(CodeAt), code.SelectMany(each => each).ToArray());
        Vcpu.SetLongMode(CodeAt, TablesAt, stack: 0x3000, mapped: 8);
    }

    /// <summary>Puts instructions into an image of the guest's memory, for <see cref="Start"/>.</summary>
    public static void WriteCode(string image, params byte[][] code)
    {
        using var file = File.OpenHandle(image, FileMode.Open, FileAccess.ReadWrite);
        RandomAccess.Write(file, code.SelectMany(static each => each).ToArray(), (long)CodeAt);
    }

    /// <summary>Has the vCPU begin where the instructions are already.</summary>
    public void Start() => Vcpu.SetLongMode(CodeAt, TablesAt, stack: 0x3000, mapped: 1);

    /// <summary>Runs on until the guest comes back; a guest that does not within 20 s fails the test.</summary>
    public KvmExit Run()
    {
        using var limit = new CancellationTokenSource(Host.Patience);
        return Vcpu.Run(limit.Token);
    }

    /// <summary>Runs instructions up to the HLT that is put behind them.</summary>
    public void RunToEnd(params byte[][] code)
    {
        Load([.. code, Hlt]);
        Assert.Equal(KvmExitReason.Hlt, Run().Reason);
    }

    public void Dispose()
    {
        Vm.Dispose();
        Ram.Dispose();
    }

    // hlt
    public static byte[] Hlt => [0xF4];

    // again: jmp again
    public static byte[] LoopForEver => [0xEB, 0xFE];

    // mov rax, ADDRESS; mov byte [rax], VALUE
    public static byte[] Store8(ulong address, byte value) => [.. MovRax(address), 0xC6, 0x00, value];

    // mov rax, ADDRESS; mov word [rax], VALUE
    public static byte[] Store16(ulong address, ushort value) => [.. MovRax(address), 0x66, 0xC7, 0x00, (byte)value, (byte)(value >> 8)];

    // mov rax, ADDRESS; mov dword [rax], VALUE
    public static byte[] Store32(ulong address, uint value) => [.. MovRax(address), 0xC7, 0x00, .. Bytes(value)[..4]];

    // mov rax, ADDRESS; mov rbx, VALUE; mov [rax], rbx
    public static byte[] Store64(ulong address, ulong value) => [.. MovRax(address), 0x48, 0xBB, .. Bytes(value), 0x48, 0x89, 0x18];

    // mov rax, ADDRESS; mov rcx, [rax]
    public static byte[] LoadToRcx(ulong address) => [.. MovRax(address), 0x48, 0x8B, 0x08];

    // mov [ADDRESS], rcx
    public static byte[] StoreRcx(uint address) => [0x48, 0x89, 0x0C, 0x25, .. Bytes(address)[..4]];

    // mov dx, PORT; mov eax, VALUE; out dx, al / ax / eax
    public static byte[] Out(ushort port, uint value, int size) =>
        [0x66, 0xBA, (byte)port, (byte)(port >> 8), 0xB8, .. Bytes(value)[..4], .. size switch { 1 => [0xEE], 2 => new byte[] { 0x66, 0xEF }, _ => [0xEF] }];

    // mov dx, PORT; xor eax, eax; in al, dx
    public static byte[] In8(ushort port) => [0x66, 0xBA, (byte)port, (byte)(port >> 8), 0x31, 0xC0, 0xEC];

    private static byte[] MovRax(ulong value) => [0x48, 0xB8, .. Bytes(value)];

    private static byte[] Bytes(ulong value)
    {
        var bytes = new byte[8];
        BinaryPrimitives.WriteUInt64LittleEndian(bytes, value);
        return bytes;
    }
}
