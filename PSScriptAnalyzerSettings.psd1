@{
    Severity     = @('Error', 'Warning')
    ExcludeRules = @(
        'PSAvoidUsingWriteHost'                  # the build and the examples speak to whoever runs them
        'PSReviewUnusedParameter'                # sees no use in the functions of a script, nor in Pester's blocks
        'PSUseDeclaredVarsMoreThanAssignments'   # the same
    )
}
