namespace GuestMemory.Core.Tests;

public sealed class ProcessMappingTests
{
    [Theory]
    [InlineData("7f2c64000000-7f2c64021000 rw-p 00000000 00:00 0 ", 0x7f2c64000000UL, 0x21000UL, "rw-p", 0UL, "00:00", 0UL, "")]
    [InlineData("00400000-00452000 r-xp 00003000 08:02 173521      /usr/bin/dbus daemon", 0x400000UL, 0x52000UL, "r-xp", 0x3000UL, "08:02", 173521UL, "/usr/bin/dbus daemon")]
    [InlineData("7f1-7f2 rw-s c0000000 00:01 2054                       /memfd:ram (deleted)", 0x7f1UL, 1UL, "rw-s", 0xc0000000UL, "00:01", 2054UL, "/memfd:ram (deleted)")]
    [InlineData("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]", 0xffffffffff600000UL, 0x1000UL, "--xp", 0UL, "00:00", 0UL, "[vsyscall]")]
    public void ALineOfTheKernelIsRead(string line, ulong address, ulong size, string protection, ulong offset, string device, ulong inode, string path) =>
        Assert.Equal(new ProcessMapping(address, size, protection, inode, path) { Offset = offset, Device = device }, ProcessMapping.Parse(line));

    [Theory]
    [InlineData("")]
    [InlineData("KernelPageSize:        4 kB")]
    [InlineData("VmFlags: rd wr mr mw me ac sd")]
    [InlineData("2-1 rw-p 00000000 00:00 0")]
    [InlineData("x-y rw-p 00000000 00:00 0")]
    [InlineData("1-2 rw-p 00000000 00:00 x")]
    [InlineData("1-2 rw-p")]
    public void AnythingElseIsNone(string line) => Assert.Null(ProcessMapping.Parse(line));

    [Fact]
    public void TheMappingsOfThisProcessAreThere()
    {
        using var region = new MmapRegionBuilder(64 * HostPage.Size).Build();
        var mapping = Assert.Single(ProcessMapping.GetAll(Environment.ProcessId), mapping => mapping.Address <= region.HostAddress && region.HostAddress < mapping.End);
        Assert.True(mapping.IsWritable && mapping.End >= region.HostAddress + region.Size);
        Assert.Equal(GuestMemoryError.ProcessNotFound, Assert.Throws<GuestMemoryException>(() => ProcessMapping.GetAll(int.MaxValue)).Error);
    }
}
