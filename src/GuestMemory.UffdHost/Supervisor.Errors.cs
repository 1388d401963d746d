namespace GuestMemory.UffdHost;

/// <content>What went wrong, which is logged, and told by the last error.</content>
internal sealed partial class Supervisor
{
    private string? _error;

    private void Fail(string error)
    {
        _error = error;
        Log.Lines.WentWrong(error);
    }

    /// <summary>The same where a VM has caused it.</summary>
    private void Fail(int vm, string error)
    {
        _error = error;
        var record = _vms.Find(vm);
        if (record is not null) record.Error = error;
        Log.Lines.VmFailed(vm, record?.List.Name ?? "", record?.List.ProcessId ?? 0, error);
    }

    /// <summary>The same where a process of a user has caused it, which has not handed over a VM; of null the handler has.</summary>
    private void FailOf(string error, uint? user)
    {
        if (user is not { } number)
        {
            Fail(error);
            return;
        }

        _error = error;
        Log.Lines.PeerRefused(number, error);
    }
}
