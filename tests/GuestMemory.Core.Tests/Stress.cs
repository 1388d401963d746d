using System.Diagnostics;
using System.Globalization;
using FsCheck;
using FsCheck.Fluent;

namespace GuestMemory.Core.Tests;

/// <summary>What tests with many threads or random input share.</summary>
internal static class Stress
{
    /// <summary>How long a test with threads runs; GUESTMEMORY_STRESS_SECONDS says otherwise.</summary>
    public static TimeSpan Duration(double seconds) => TimeSpan.FromSeconds(
        Environment.GetEnvironmentVariable("GUESTMEMORY_STRESS_SECONDS") is { Length: > 0 } said ? double.Parse(said, CultureInfo.InvariantCulture) : seconds);

    /// <summary>GUESTMEMORY_SEED: the random case to check again: the seed that its failure names, "NUMBER,NUMBER,SIZE".</summary>
    public static string? Replay => Environment.GetEnvironmentVariable("GUESTMEMORY_SEED") is { Length: > 0 } said ? said : null;

    /// <summary>
    /// Checks random cases for a while; how many. A failure is made as short as it can be, and names its seed: that case alone is
    /// checked again under GUESTMEMORY_SEED.
    /// </summary>
    public static int CheckFor<T>(TimeSpan duration, Arbitrary<T> cases, Action<T> check)
    {
        var property = Prop.ForAll(cases, check);
        var config = Config.QuickThrowOnFailure.WithQuietOnSuccess(true).WithMaxTest(1);
        if (Replay is { } replay)
        {
            var numbers = Array.ConvertAll(replay.Split([',', '(', ')', ' '], StringSplitOptions.RemoveEmptyEntries), static text => ulong.Parse(text, CultureInfo.InvariantCulture));
            property.Check(numbers.Length > 2 ? config.WithReplay(numbers[0], numbers[1], (int)numbers[2]) : config.WithReplay(numbers[0], numbers[1]));
            return 1;
        }

        var clock = Stopwatch.StartNew();
        var count = 0;
        do
        {
            property.Check(config);
            count++;
        }
        while (clock.Elapsed < duration);
        return count;
    }

    /// <summary>A list as a failure shows it.</summary>
    public static string List<T>(IReadOnlyCollection<T> items) =>
        $"[{string.Join(", ", items.Take(20))}{(items.Count > 20 ? $" ... {items.Count} in all" : "")}]";

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
    public static void Repeat(TimeSpan duration, params IEnumerable<Action> actions) => Repeat(duration, static () => true, actions);

    /// <summary>The same, and longer where a busy machine has not done what the test is about, as long as <see cref="Host.Patience"/>.</summary>
    public static void Repeat(TimeSpan duration, Func<bool> isEnough, params IEnumerable<Action> actions)
    {
        var clock = Stopwatch.StartNew();
        var failed = 0;
        RunAll(actions.Select(action => (Action)(() =>
        {
            try
            {
                do action();
                while ((clock.Elapsed < duration || (clock.Elapsed < Host.Patience && !isEnough())) && Volatile.Read(ref failed) == 0);
            }
            catch
            {
                Volatile.Write(ref failed, 1);
                throw;
            }
        })));
    }
}
