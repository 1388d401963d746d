namespace GuestMemory.Core.Tests;

/// <summary>Handlers in processes of their own are found by a variable of the environment, which is one for the whole process.</summary>
[CollectionDefinition(Name, DisableParallelization = true)]
public sealed class RuntimeFolder : ICollectionFixture<RuntimeFolder>, IDisposable
{
    public const string Name = "handlers in processes of their own";

    public RuntimeFolder() => Environment.SetEnvironmentVariable(UffdRuntimeFolder.Variable, Folder.Path);

    public TestFolder Folder { get; } = new();

    /// <summary>Stops every handler and waits until its files are gone. One that does not answer in time is not found at first.</summary>
    public void StopAll() => Host.Until(() =>
    {
        foreach (var handler in UffdHandler.FindAll()) handler.Stop();
        return Directory.GetFiles(Folder.Path, "*.sock").Length == 0;
    });

    public void Dispose()
    {
        StopAll();
        Folder.Dispose();
    }
}
