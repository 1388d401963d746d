namespace GuestMemory.Core.Tests;

/// <summary>A test that needs root.</summary>
public sealed class RootFactAttribute : FactAttribute
{
    public RootFactAttribute()
    {
        if (Users.Current != 0) Skip = "needs root, to set the size of the pool of huge pages";
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

/// <summary>A test that needs a userfaultfd.</summary>
public sealed class UffdFactAttribute : FactAttribute
{
    public UffdFactAttribute()
    {
        if (Userfaultfd.TryProbe(out _) is var error and not 0) Skip = $"this user may not create a userfaultfd ({Errno.Name(error)})";
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
