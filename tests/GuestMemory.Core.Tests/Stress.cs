using System.Diagnostics;
using System.Globalization;

namespace GuestMemory.Core.Tests;

/// <summary>What tests with many threads or random input share.</summary>
internal static class Stress
{
    /// <summary>How long a test with threads runs; GUESTMEMORY_STRESS_SECONDS says otherwise.</summary>
    public static TimeSpan Duration(double seconds) => TimeSpan.FromSeconds(
        Environment.GetEnvironmentVariable("GUESTMEMORY_STRESS_SECONDS") is { Length: > 0 } said ? double.Parse(said, CultureInfo.InvariantCulture) : seconds);

    /// <summary>Where random input begins: GUESTMEMORY_SEED, to repeat a failure, or another one each time.</summary>
    public static int Seed() =>
        Environment.GetEnvironmentVariable("GUESTMEMORY_SEED") is { Length: > 0 } said ? int.Parse(said, CultureInfo.InvariantCulture) : Random.Shared.Next();

    /// <summary>Runs a check with a generator for each of so many seeds; one that fails is named, and run alone under GUESTMEMORY_SEED.</summary>
    public static void ForEachSeed(int count, Action<Random> check)
    {
        var first = Seed();
        if (Environment.GetEnvironmentVariable("GUESTMEMORY_SEED") is { Length: > 0 }) count = 1;
        for (var i = 0; i < count; i++)
        {
            var seed = unchecked(first + i);
            if (Record.Exception(() => check(new Random(seed))) is { } failure)
                throw new InvalidOperationException($"GUESTMEMORY_SEED={seed} fails: {failure.Message}", failure);
        }
    }

    /// <summary>Runs every action on a thread of its own until it returns; none may fail.</summary>
    public static void RunAll(params IEnumerable<Action> actions)
    {
        var failures = new List<Exception>();
        var threads = actions.Select(action => new Thread(() =>
        {
            if (Record.Exception(action) is not { } failure) return;
            lock (failures) failures.Add(failure);
        })).ToArray();
        foreach (var thread in threads) thread.Start();
        foreach (var thread in threads) thread.Join();
        if (failures.Count > 0) throw new AggregateException(failures);
    }

    /// <summary>Runs actions over and over, each on a thread of its own, for a while; the first failure ends all.</summary>
    public static void Repeat(TimeSpan duration, params IEnumerable<Action> actions)
    {
        var clock = Stopwatch.StartNew();
        var failed = 0;
        RunAll(actions.Select(action => (Action)(() =>
        {
            try
            {
                do action();
                while (clock.Elapsed < duration && Volatile.Read(ref failed) == 0);
            }
            catch
            {
                Volatile.Write(ref failed, 1);
                throw;
            }
        })));
    }
}
