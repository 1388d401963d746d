namespace GuestMemory.Core.Tests;

/// <summary>A test that needs root.</summary>
public sealed class RootFactAttribute : FactAttribute
{
    public RootFactAttribute()
    {
        if (Users.Current != 0) Skip = "needs root, to set the size of the pool of huge pages";
    }
}

/// <summary>A test that maps huge pages, but touches none.</summary>
public sealed class HugePagesFactAttribute : FactAttribute
{
    public HugePagesFactAttribute()
    {
        if (HugePages.Pools().Count == 0) Skip = "this kernel has no huge pages";
    }
}

/// <summary>A test that needs a pool of huge pages without any.</summary>
public sealed class EmptyPoolFactAttribute : FactAttribute
{
    public EmptyPoolFactAttribute()
    {
        if (PageSize == 0) Skip = "no pool of huge pages of this host is empty";
    }

    /// <summary>The size of the pages that are not there, in bytes; 0 where every pool has some.</summary>
    public static ulong PageSize => HugePages.Pools().LastOrDefault(static pool => HugePages.Available(pool.PageSize) == 0)?.PageSize ?? 0;
}

/// <summary>A test in which nobody, also not root, may change what is in a folder.</summary>
public sealed class ImmutableFolderFactAttribute : FactAttribute
{
    public ImmutableFolderFactAttribute()
    {
        using var folder = new TestFolder();
        if (!TrySet(folder.Path, immutable: true) || !TrySet(folder.Path, immutable: false)) Skip = "needs root and a file system that knows 'chattr +i'";
    }

    public static bool TrySet(string folder, bool immutable)
    {
        if (!File.Exists("/usr/bin/chattr")) return false;
        using var chattr = System.Diagnostics.Process.Start(new System.Diagnostics.ProcessStartInfo("/usr/bin/chattr", [immutable ? "+i" : "-i", folder]) { RedirectStandardError = true, UseShellExecute = false });
        chattr!.WaitForExit();
        return chattr.ExitCode == 0;
    }
}

/// <summary>A test that needs a C compiler.</summary>
public sealed class CompilerFactAttribute : FactAttribute
{
    public CompilerFactAttribute()
    {
        if (!Compiler.IsThere) Skip = "needs a C compiler ('apt-get install gcc libc6-dev')";
    }
}

/// <summary>A test in which a C program is another user.</summary>
public sealed class OtherUserFactAttribute : FactAttribute
{
    public OtherUserFactAttribute() => Skip = Users.Current != 0 ? "needs root, to become another user" : new CompilerFactAttribute().Skip;
}

/// <summary>A test that needs a userfaultfd.</summary>
public sealed class UffdFactAttribute : FactAttribute
{
    public UffdFactAttribute()
    {
        if (Userfaultfd.TryProbe(out _) is var error and not 0) Skip = $"this user may not create a userfaultfd ({Errno.Name(error)})";
    }
}

/// <summary>A test that needs userfaultfds, prlimit(1), and descriptors for hundreds of VMs.</summary>
public sealed class ManyVmsFactAttribute : FactAttribute
{
    public ManyVmsFactAttribute()
    {
        if (Userfaultfd.TryProbe(out _) is var error and not 0) Skip = $"this user may not create a userfaultfd ({Errno.Name(error)})";
        else if (ResourceLimit.TryGet(ResourceLimit.RLIMIT_NOFILE, out var limit) == 0 && limit.rlim_max < 4000) Skip = $"only {limit.rlim_max} files may be open";
        else if (!File.Exists("/usr/bin/prlimit")) Skip = "prlimit is missing";
    }
}

/// <summary>A test with data that needs a userfaultfd.</summary>
public sealed class UffdTheoryAttribute : TheoryAttribute
{
    public UffdTheoryAttribute()
    {
        if (Userfaultfd.TryProbe(out _) is var error and not 0) Skip = $"this user may not create a userfaultfd ({Errno.Name(error)})";
    }
}

/// <summary>A test that needs KVM.</summary>
public sealed class KvmFactAttribute : FactAttribute
{
    public KvmFactAttribute() => Skip = KvmTheoryAttribute.Missing;
}

/// <summary>Tests that need KVM.</summary>
public sealed class KvmTheoryAttribute : TheoryAttribute
{
    public KvmTheoryAttribute() => Skip = Missing;

    public static string? Missing { get; } = HostSupport.Probe().First(feature => feature.Feature == "Kvm") is { Supported: false } kvm ? $"{kvm.Detail} {kvm.Remedy}" : null;
}

/// <summary>A test that runs instructions of x86-64 in a guest.</summary>
public sealed class GuestFactAttribute : FactAttribute
{
    public GuestFactAttribute(bool userfault = false) => Skip = GuestTheoryAttribute.Missing ?? (userfault ? new UffdFactAttribute().Skip : null);
}

/// <summary>Tests that run instructions of x86-64 in a guest.</summary>
public sealed class GuestTheoryAttribute : TheoryAttribute
{
    public GuestTheoryAttribute() => Skip = Missing;

    public static string? Missing => KvmTheoryAttribute.Missing
        ?? (System.Runtime.InteropServices.RuntimeInformation.ProcessArchitecture != System.Runtime.InteropServices.Architecture.X64 ? "the guest's instructions are those of x86-64" : null);
}
