namespace GuestMemory.Core.Tests;

/// <summary>Handlers in processes of their own are found by a variable of the environment, which is one for the whole process.</summary>
[CollectionDefinition(Name, DisableParallelization = true)]
public sealed class RuntimeFolder : ICollectionFixture<RuntimeFolder>, IDisposable
{
    public const string Name = "handlers in processes of their own";

    public RuntimeFolder() => Environment.SetEnvironmentVariable(UffdRuntimeFolder.Variable, Folder.Path);

    public TestFolder Folder { get; } = new();

    public void Dispose()
    {
        foreach (var handler in UffdHandler.FindAll()) handler.Stop();
        Folder.Dispose();
    }
}
