using System.Text;
using GuestMemory.Fuzz;

namespace GuestMemory.Core.Tests;

/// <summary>What fuzzing has found, and the same fault elsewhere: each input made a parser fail, believe what is wrong, or write where it must not.</summary>
public sealed class FuzzFindingTests
{
    // Members that figures must have, but for their VMs.
    private const string Figures = """
        "processId":0,"faultCount":0,"copiedCount":0,"zeroCount":0,"presentCount":0,"continuedCount":0,"writeProtectedCount":0,"deferredCount":0,"poisonedCount":0,"failedCount":0,"removeCount":0,"sourceErrorCount":0,"queueDepth":0,"faultByteCount":0,"windowByteCount":0,"fillByteCount":0,"fillZeroByteCount":0,"pageCount":0,"presentPageCount":0,"removedPageCount":0,"latencyP50":"00:00:00","latencyP90":"00:00:00","latencyP99":"00:00:00","latencyP999":"00:00:00","latencyMax":"00:00:00","timeToFirstPage":null,"error":null
        """;

    private static readonly string s_long = new('y', 6000);

    public static TheoryData<string, string, string> Texts => new()
    {
        { "figures of null", "shared-json", "f{" + Figures + ",\"vms\":[null]}" },
        { "figures without a list", "shared-json", "f{" + Figures + ",\"vms\":null}" },
        { "figures that say nothing of VMs", "shared-json", "f{" + Figures + "}" },
        { "a bitmap that is null", "shared-json", "w[null]" },
        { "a bitmap without a source", "shared-json", """w[{"startAddress":0,"byteSize":4096,"source":null,"words":[1]}]""" },
        { "a bitmap of 2^64 bytes without words", "shared-json", """w[{"startAddress":0,"byteSize":18446744073709551615,"source":"x","words":[]}]""" },
        { "a bitmap past the last address", "shared-json", """w[{"startAddress":18446744073709547520,"byteSize":8192,"source":"x","words":[3]}]""" },
        { "bits behind the last page", "shared-json", """w[{"startAddress":0,"byteSize":4096,"source":"x","words":[3]}]""" },
        { "a VM without a list", "shared-json", """l{"Mappings":null}""" },
        { "a mapping that is null", "shared-json", """l{"Mappings":[null]}""" },
        { "a handler whose path is null", "control-socket", "r?{\"handler\":{\"socketPath\":null}}\n" },
        { "a handler without paths", "control-socket", "r?{\"handler\":{}}\n" },
        { "a handler that says nothing of VMs", "control-socket", "r?{\"handler\":{\"socketPath\":\"a\",\"memoryPath\":\"b\",\"figures\":{" + Figures + "}}}\n" },
        { "options that say nothing of layers", "control-socket", """c?{"Type":"Start","Options":{"SocketPath":"a","MemoryPath":"b"}}""" },
        { "a state that is a number", "control-socket", "r?{\"handler\":{\"state\":99}}\n" },
        { "an error that is a number", "control-socket", "r?{\"errorId\":\"999\",\"message\":\"x\"}\n" },
        { "a message of no type", "control-socket", """c?{"Type":99}""" },
        { "a message that is null", "control-socket", "c?null" },
        { "a strategy that is a number", "arguments", "--socket-path\na\n--memory-path\nb\n--strategy\n99" },
        { "two strategies", "arguments", "--socket-path\na\n--memory-path\nb\n--strategy\nWindow,Replay" },
        { "a descriptor that the manager could not be asked for", "service-manager", "4321\n1\nvm-01-list" },
        { "a VM after which none can have a number", "service-manager", "4321\n1\nvm-2147483647-list" },
        { "a long member in a request", "control-socket", "q?{\"request\":\"status\",\"" + s_long + "\":[[[[[[[[[[\n" },
        { "a long member in a list", "mapping-list", "[{\"" + s_long + "\":[[[[[[[[[[" },
        { "a long member in the list of a VM", "shared-json", "l{\"" + s_long + "\":[[[[[[[[[[" },
        { "a long member, in pieces or whole", "handover", "\0\u0004[{\"base_host_virt_addr\":0,\"" + s_long + "\":1,\"size\":4096,\"offset\":0}]" },
    };

    public static TheoryData<string, string, string> Bytes => new()
    {
        { "a part of no bytes in a dirty page", "dirty-log", "00010000000000000000000000000000" + "81" },
        { "a page that is being opened, and is none", "vm-state", "07" + "840904" + "01000000" + "880908" + "050000ffffffffff" },
        { "pages found past the last region", "vm-state", "07" + "840904" + "01000000" + "000a18" + "001000000000ffff" + "000000400000ffff" + "0200000000000000" },
        { "pages found that end before they begin", "vm-state", "07" + "840904" + "01000000" + "000a18" + "002000000000ffff" + "001000000000ffff" + "0200000000000000" },
        { "bits behind the last page of a state", "vm-state", "07" + "003010" + "ffffffffffffffffffffffffffffffff" },
        { "a latency below zero", "vm-state", "07" + "201308" + "0500000000000000" + "802e08" + "6079feffffffffff" },
    };

    [Theory]
    [MemberData(nameof(Texts))]
    public void TextIsReadOrRefused(string what, string target, string input) => Run(what, target, Encoding.Latin1.GetBytes(input));

    [Theory]
    [MemberData(nameof(Bytes))]
    public void BytesAreReadOrRefused(string what, string target, string input) => Run(what, target, Convert.FromHexString(input));

    [Fact]
    public void ARecordThatIsTooLongIsNotReadWhole()
    {
        const ulong Image = 512 * 4096;
        using var folder = new TestFolder();
        TouchRecord.Save(folder["record"], Image, [1, 2]);
        using (var file = File.OpenHandle(folder["record"], FileMode.Open, FileAccess.Write)) RandomAccess.SetLength(file, 32 + (64 << 20));
        var before = GC.GetAllocatedBytesForCurrentThread();
        Assert.Equal(GuestMemoryError.InvalidRecord, Assert.Throws<GuestMemoryException>(() => TouchRecord.Load(folder["record"], Image)).Error);
        Assert.True(GC.GetAllocatedBytesForCurrentThread() - before < 1 << 20);
    }

    private static void Run(string what, string name, byte[] input)
    {
        var target = FuzzTargets.All.First(target => target.Name == name);
        Assert.SkipWhen(target.Missing?.Invoke() is not null, target.Missing?.Invoke() ?? "");
        var finding = Record.Exception(() => FuzzRunner.Run(target, input));
        Assert.True(finding is null, $"{what}: {finding}");
    }
}
