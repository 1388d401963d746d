namespace GuestMemory.Core.VmControl;

/// <summary>The response to a request that answers with error numbers (the memory part of crosvm's <c>VmResponse</c>).</summary>
public abstract record VmResponse
{
    private VmResponse()
    {
    }

    /// <summary>Success.</summary>
    public sealed record Ok : VmResponse
    {
        /// <summary>The only instance.</summary>
        public static Ok Instance { get; } = new();
    }

    /// <summary>Memory was registered.</summary>
    /// <param name="Slot">The VM's slot that it is in.</param>
    public sealed record RegisterMemory(uint Slot) : VmResponse;

    /// <summary>Failure.</summary>
    /// <param name="ErrorCode">The error number, see <see cref="Interop.Errno"/>.</param>
    public sealed record Err(int ErrorCode) : VmResponse;

    /// <summary>Executes an action while no other request is executed on the VM; a failure becomes its error number.</summary>
    internal static VmResponse Of(VmMemoryContext context, Func<VmResponse> action)
    {
        ArgumentNullException.ThrowIfNull(context);
        lock (context.Lock)
        {
            try
            {
                return action();
            }
            catch (Interop.SyscallException exception)
            {
                return new Err(exception.ErrorCode);
            }
            catch (GuestMemoryException)
            {
                return new Err(Interop.Errno.EINVAL);
            }
            catch (ObjectDisposedException)
            {
                return new Err(Interop.Errno.EBADF);
            }
        }
    }
}
